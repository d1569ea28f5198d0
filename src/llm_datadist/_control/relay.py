"""Lanes whose bytes are encrypted: threads that move them between the native core and TLS.

The core has one end of a Unix socket pair, as if it were the connection. A relay has the other end,
the TCP connection and its TLS session, and passes bytes on, a bounded number at a time: it reads
from one side only when the other has taken what came before. All relays of an instance share a few
threads, which sleep while nothing comes.

What must not wait for these threads, which need the interpreter, does not: with its end of the pair
the core gets a duplicate of the TCP connection, where it sees by itself that the peer has hung up,
and which it cuts when it gives an operation up (`native/lanes/socket.h`). Deadlines and the quiet
after a failure therefore hold as on any other lane.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
from collections import deque
from typing import TYPE_CHECKING, Final, final

from llm_datadist._control.sockets import plain_address, printed, track
from llm_datadist._control.threads import start
from llm_datadist._control.tls import TlsError
from llm_datadist._errors import LLMException

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from llm_datadist._control.tls import SecureSocket, TlsSession

__all__ = ["CarriedLane", "Relays"]

logger = logging.getLogger("llm_datadist")

_MOST_THREADS: Final = 4
_CHUNK_BYTES: Final = 256 << 10
#: As much as net.core.wmem_max allows; the default is half of that, and costs a tenth more work.
_PAIR_BYTES: Final = 1 << 20
_TURNS: Final = 4  # chunks of one lane before the others get their turn
_STOP_SECONDS: Final = 2.0
_IN, _OUT, _RDHUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLRDHUP
_DEAD: Final = select.EPOLLHUP | select.EPOLLERR


@final
class CarriedLane:
    """A lane inside TLS that has proved itself; like a socket to those who pass it on."""

    def __init__(
        self, wire: SecureSocket, start: Callable[[_Relay], None], *, serves: bool
    ) -> None:
        assert wire.session is not None
        self._start = start
        self._inner, outer = (track(end) for end in socket.socketpair())
        try:
            for end in (self._inner, outer):
                end.setblocking(False)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PAIR_BYTES)
            socket.send_fds(outer, [b"\0"], [wire.sock.fileno()])
        except BaseException:
            self._inner.close()
            outer.close()
            raise
        self._relay = _Relay(wire.sock, wire.session, outer, serves=serves)

    def detach(self) -> int:
        """Begin to pass bytes on, and return the descriptor for the native core."""
        self._start(self._relay)
        return self._inner.detach()

    def close(self) -> None:
        """Close all of it, instead of `detach`. Idempotent."""
        self._inner.close()
        self._relay.close()


@final
class Relays:
    """The encrypted lanes of one instance and the threads that serve them. Thread-safe.

    Args:
        name: Of the instance; prefix of the threads' names.
        dialing: TLS for lanes that this instance opens.
    """

    def __init__(self, name: str, dialing: ssl.SSLContext) -> None:
        self.dialing = dialing
        self._name = name
        self._lock = threading.Lock()
        self._threads: list[_RelayThread] = []
        self._turn = 0
        self._closed = False
        self._pid = os.getpid()

    def carry(self, wire: SecureSocket, *, serves: bool) -> CarriedLane:
        """Make a lane of a connection inside TLS; it owns the socket when this returns.

        Args:
            wire: Past the proofs of the lane.
            serves: Whether this end serves requests on it.

        Raises:
            OSError: No descriptors, or no threads, can be had.
        """
        with self._lock:
            if not self._closed and not self._threads:
                count = max(1, min(_MOST_THREADS, os.cpu_count() or 1))
                self._threads = _relay_threads(f"{self._name}-relay", count)
        return CarriedLane(wire, self._begin, serves=serves)

    def close(self) -> None:
        """End all lanes and threads. Idempotent, bounded."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._closed = True
            threads, self._threads = self._threads, []
        for thread in threads:
            thread.stop()

    def _begin(self, relay: _Relay) -> None:
        with self._lock:
            if not self._threads:
                relay.close()
                return
            self._turn = (self._turn + 1) % len(self._threads)
            self._threads[self._turn].add(relay)


@final
class _Relay:
    """One lane's bytes, both ways. Belongs to one thread once it has been started.

    Encrypted bytes go through `wire`, plain ones through `outer`, whose other end the core has.
    """

    def __init__(
        self, wire: socket.socket, session: TlsSession, outer: socket.socket, *, serves: bool
    ) -> None:
        self.wire = wire
        self.outer = outer
        self._session = session
        self._serves = serves
        self._to_core = memoryview(b"")
        self._to_peer = memoryview(b"")
        self._peer_ended = self._core_ended = False
        self.over = False  # the core has closed its end: there is nothing left to do

    def close(self) -> None:
        """Close the connection, whoever else holds it. Idempotent."""
        with contextlib.suppress(OSError):
            self.wire.shutdown(socket.SHUT_RDWR)
        self.wire.close()
        self.outer.close()

    def wire_events(self) -> int | None:
        """Return what to wait for on the wire, besides failure; None for nothing more, ever."""
        if self._peer_ended or self.over:
            return None
        wanted = 0 if self._to_core else _IN | _RDHUP
        return wanted | (_OUT if self._to_peer else 0) | (_RDHUP if self._serves else 0)

    def outer_events(self) -> int | None:
        """Return what to wait for at the core's side, besides its end; None for nothing more."""
        if self.over:
            return None
        wanted = 0 if self._to_peer or self._core_ended else _IN
        return wanted | (_OUT if self._to_core else 0)

    def on_wire(self, events: int, buffers: _Buffers) -> None:
        """Something happened on the wire."""
        if events & _OUT and self._to_peer:
            self._send_to_peer(self._to_peer)
        # A lane that the peer has left is over for the end that serves it, whatever came before.
        if events & _DEAD or (events & _RDHUP and self._serves):
            self._end_peer()
        elif events & (_IN | _RDHUP):
            self._receive_from_peer(buffers)

    def on_outer(self, events: int, buffers: _Buffers) -> None:
        """Something happened at the core's side."""
        if events & _OUT and self._to_core:
            self._send_to_core(self._to_core)
        if events & (_IN | _DEAD) and not self._core_ended:
            self._receive_from_core(buffers)
        if events & _DEAD:
            self.over = True

    def receive_fed(self, buffers: _Buffers) -> None:
        """Pass on what had come along with the end of the handshake."""
        self._decrypt(buffers)

    def _receive_from_peer(self, buffers: _Buffers) -> None:
        for _ in range(_TURNS):
            if self._to_core or self._peer_ended:
                return
            try:
                got = self.wire.recv_into(buffers.encrypted)
            except BlockingIOError:
                return
            except OSError:
                got = 0
            if got == 0:
                self._end_peer()
                return
            self._session.feed(buffers.encrypted[:got])
            self._decrypt(buffers)

    def _decrypt(self, buffers: _Buffers) -> None:
        filled = 0
        try:
            while got := self._session.decrypt_into(buffers.plain[filled:]):
                filled += got
        except (TlsError, EOFError) as error:
            self._refuse(error)
            return
        finally:
            if filled:
                self._send_to_core(buffers.plain[:filled])
        if answer := self._session.records():  # of the TLS protocol itself
            self._send_to_peer(memoryview(bytes(self._to_peer) + answer))

    def _refuse(self, error: Exception) -> None:
        with contextlib.suppress(OSError):
            peer = printed(plain_address(self.wire.getpeername()))
            logger.warning("encrypted lane to %s ends: %s", peer, error)
        with contextlib.suppress(OSError):
            self.wire.shutdown(socket.SHUT_RDWR)
        self._end_peer()

    def _receive_from_core(self, buffers: _Buffers) -> None:
        for _ in range(_TURNS):
            if self._to_peer:
                return
            try:
                got = self.outer.recv_into(buffers.plain)
            except BlockingIOError:
                return
            except OSError:
                got = 0
            if got == 0:
                self._end_core()
                return
            if not self._peer_ended:  # else it goes nowhere, until the core has noticed
                self._send_to_peer(memoryview(self._session.encrypt(buffers.plain[:got])))

    def _send_to_peer(self, data: memoryview) -> None:
        try:
            self._to_peer = data[self.wire.send(data) :]
        except BlockingIOError:
            self._to_peer = data
        except OSError:
            self._end_peer()
            return
        if self._core_ended and not self._to_peer:
            self._stop_sending()

    def _send_to_core(self, data: memoryview) -> None:
        try:
            rest = data[self.outer.send(data) :]
        except BlockingIOError:
            rest = data
        except OSError:  # it has closed, and its end says so, too
            rest = memoryview(b"")
        self._to_core = memoryview(bytes(rest))  # the buffer is used again
        if self._peer_ended and not rest:
            self._tell_core()

    def _end_peer(self) -> None:
        """The peer has gone: the core hears of it, and says when it has stopped by closing."""
        if self._peer_ended:
            return
        self._peer_ended = True
        self._to_peer = memoryview(b"")
        if self._serves:
            self._to_core = memoryview(b"")
        if not self._to_core:
            self._tell_core()

    def _end_core(self) -> None:
        self._core_ended = True
        if not self._to_peer:
            self._stop_sending()

    def _tell_core(self) -> None:
        with contextlib.suppress(OSError):
            self.outer.shutdown(socket.SHUT_WR)

    def _stop_sending(self) -> None:
        with contextlib.suppress(OSError):
            self.wire.shutdown(socket.SHUT_WR)


class _Buffers:
    """What the relays of a thread use in turn."""

    def __init__(self) -> None:
        self.encrypted = memoryview(bytearray(_CHUNK_BYTES))
        # What was left of an earlier record adds to what came.
        self.plain = memoryview(bytearray(_CHUNK_BYTES + (32 << 10)))


@final
class _RelayThread:
    """Serves some relays, until `stop`."""

    def __init__(self, name: str) -> None:
        self._arrived: deque[_Relay] = deque()
        self._stopping = False
        self._relays: dict[int, _Relay] = {}  # by either descriptor
        self._events: dict[int, int] = {}  # what is waited for, by descriptor
        self._buffers = _Buffers()
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, _IN)
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        try:
            start(self._thread, "link_clusters")
        except LLMException as error:
            self._release()
            raise OSError(str(error)) from error

    def add(self, relay: _Relay) -> None:
        """Serve a relay, too."""
        self._arrived.append(relay)
        os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """Close all relays and end the thread."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        self._thread.join(_STOP_SECONDS)
        if self._thread.is_alive():
            logger.warning("%s does not end and is left behind", self._thread.name)
        else:
            self._release()

    def _release(self) -> None:
        self._epoll.close()
        os.close(self._wake)

    def _serve(self) -> None:
        while not self._stopping:
            for fd, events in self._epoll.poll():
                if fd == self._wake:
                    os.eventfd_read(self._wake)
                    self._admit()
                elif (relay := self._relays.get(fd)) is not None:
                    self._turn(relay, fd, events)
        for relay in {*self._relays.values(), *self._arrived}:
            relay.close()
        self._relays.clear()

    def _admit(self) -> None:
        while self._arrived:
            relay = self._arrived.popleft()
            for sock in (relay.wire, relay.outer):
                self._relays[sock.fileno()] = relay
            self._turn(relay, -1, 0)

    def _turn(self, relay: _Relay, fd: int, events: int) -> None:
        wire, outer = relay.wire.fileno(), relay.outer.fileno()
        try:
            if fd == wire:
                relay.on_wire(events, self._buffers)
            elif fd == outer:
                relay.on_outer(events, self._buffers)
            else:
                relay.receive_fed(self._buffers)
            self._await(wire, relay.wire_events())
            self._await(outer, relay.outer_events())
        except Exception:  # no memory; the others go on
            logger.exception("an encrypted lane failed")
            relay.over = True
        if relay.over:
            for each in (wire, outer):
                self._await(each, None)
                del self._relays[each]
            relay.close()

    def _await(self, fd: int, wanted: int | None) -> None:
        """Wait for other events of a descriptor than before; None for none at all.

        Closing it would not be enough: the core has a duplicate.
        """
        before = self._events.pop(fd, None)
        if wanted is None:
            if before is not None:
                self._epoll.unregister(fd)
            return
        if before is None:
            self._epoll.register(fd, wanted)
        elif before != wanted:
            self._epoll.modify(fd, wanted)
        self._events[fd] = wanted


def _relay_threads(name: str, count: int) -> list[_RelayThread]:
    """Start some threads; fewer, but one at least, where no more can be had."""
    threads: list[_RelayThread] = []
    for i in range(count):
        try:
            threads.append(_RelayThread(f"{name}-{i}"))
        except OSError:
            if not threads:
                raise
            break
    return threads
