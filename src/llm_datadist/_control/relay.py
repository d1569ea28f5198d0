"""Encrypted lanes: threads that relay their bytes between the native core and TLS.

The core has one end of a Unix socket pair instead of the connection. A relay has the other end, the
TCP connection and its TLS session. It relays a bounded number of bytes at a time: it reads from one
side only after the other has taken the previous bytes. All relays of an instance share a few
threads, which sleep while there is no data.

These threads need the interpreter, so deadlines and failures must not depend on them. The core
therefore also gets a duplicate of the TCP connection, on which it sees that the peer has closed and
which it shuts down when it gives up an operation (`native/lanes/socket.h`).
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
#: Limit of net.core.wmem_max; the default of half that size costs 10% more work.
_PAIR_BYTES: Final = 1 << 20
_TURNS: Final = 4  # chunks of one lane before other lanes are served
_STOP_SECONDS: Final = 2.0
_IN, _OUT, _RDHUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLRDHUP
_DEAD: Final = select.EPOLLHUP | select.EPOLLERR


@final
class CarriedLane:
    """An authenticated lane inside TLS, with the interface of a socket."""

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
        """Start relaying, and return the descriptor for the native core."""
        self._start(self._relay)
        return self._inner.detach()

    def close(self) -> None:
        """Close the lane, instead of `detach`. Idempotent."""
        self._inner.close()
        self._relay.close()


@final
class Relays:
    """The encrypted lanes of one instance and the threads that serve them. Thread-safe.

    Args:
        name: Prefix of the threads' names.
        dialing: TLS context for lanes that this instance opens.
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
        """Make a lane of a connection inside TLS; the lane then owns the socket.

        Args:
            wire: The connection, after the lane handshake.
            serves: Whether this end serves requests on it.

        Raises:
            OSError: There are no descriptors or threads.
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
    """Relays one lane in both directions. Used by one thread only after it was started.

    `wire` carries the encrypted bytes, `outer` the plain ones; the core has the other end of that.
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
        self.over = False  # the core has closed its end

    def close(self) -> None:
        """Shut the connection down, also for other holders, and close it. Idempotent."""
        with contextlib.suppress(OSError):
            self.wire.shutdown(socket.SHUT_RDWR)
        self.wire.close()
        self.outer.close()

    def wire_events(self) -> int | None:
        """Return the events to wait for on the wire, besides failure; None if it is finished."""
        if self._peer_ended or self.over:
            return None
        wanted = 0 if self._to_core else _IN | _RDHUP
        return wanted | (_OUT if self._to_peer else 0) | (_RDHUP if self._serves else 0)

    def outer_events(self) -> int | None:
        """Return the events to wait for on the core's side, besides its end; None if finished."""
        if self.over:
            return None
        wanted = 0 if self._to_peer or self._core_ended else _IN
        return wanted | (_OUT if self._to_core else 0)

    def on_wire(self, events: int, buffers: _Buffers) -> None:
        """Handle an event on the wire."""
        if events & _OUT and self._to_peer:
            self._send_to_peer(self._to_peer)
        # For the end that serves, a lane that the peer has closed is over, even with data left.
        if events & _DEAD or (events & _RDHUP and self._serves):
            self._end_peer()
        elif events & (_IN | _RDHUP):
            self._receive_from_peer(buffers)

    def on_outer(self, events: int, buffers: _Buffers) -> None:
        """Handle an event on the core's side."""
        if events & _OUT and self._to_core:
            self._send_to_core(self._to_core)
        if events & (_IN | _DEAD) and not self._core_ended:
            self._receive_from_core(buffers)
        if events & _DEAD:
            self.over = True

    def receive_fed(self, buffers: _Buffers) -> None:
        """Relay the data that arrived with the end of the handshake."""
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
        if answer := self._session.records():  # of the TLS protocol, such as a key update
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
            if not self._peer_ended:  # otherwise it is discarded, until the core has noticed
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
        except OSError:  # it has closed, which its end event reports too
            rest = memoryview(b"")
        self._to_core = memoryview(bytes(rest))  # the buffer is used again
        if self._peer_ended and not rest:
            self._tell_core()

    def _end_peer(self) -> None:
        """Notify the core that the peer has closed; the core closes its end when it has stopped."""
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
    """Buffers that the relays of one thread share."""

    def __init__(self) -> None:
        self.encrypted = memoryview(bytearray(_CHUNK_BYTES))
        # The rest of an earlier record is added to the new data.
        self.plain = memoryview(bytearray(_CHUNK_BYTES + (32 << 10)))


@final
class _RelayThread:
    """Serves a number of relays until `stop`."""

    def __init__(self, name: str) -> None:
        self._arrived: deque[_Relay] = deque()
        self._stopping = False
        self._relays: dict[int, _Relay] = {}  # by either descriptor
        self._events: dict[int, int] = {}  # events waited for, by descriptor
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
        """Add a relay."""
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
        except Exception:  # no memory; the others continue
            logger.exception("an encrypted lane failed")
            relay.over = True
        if relay.over:
            for each in (wire, outer):
                self._await(each, None)
                del self._relays[each]
            relay.close()

    def _await(self, fd: int, wanted: int | None) -> None:
        """Set the events to wait for on a descriptor; None for none.

        A descriptor that was closed must be removed, because the core has a duplicate.
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
    """Start some threads; at least one if the system allows no more."""
    threads: list[_RelayThread] = []
    for i in range(count):
        try:
            threads.append(_RelayThread(f"{name}-{i}"))
        except OSError:
            if not threads:
                raise
            break
    return threads
