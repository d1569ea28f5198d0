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

import logging
import os
import select
import socket
import threading
from collections import deque
from typing import TYPE_CHECKING, Final, final

from llm_datadist._control.lane_relay import Buffers, LaneRelay
from llm_datadist._control.sockets import track
from llm_datadist._control.threads import start
from llm_datadist._errors import LLMException

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from llm_datadist._control.tls import SecureSocket

__all__ = ["CarriedLane", "Relays"]

logger = logging.getLogger("llm_datadist")

_MOST_THREADS: Final = 4
#: Limit of net.core.wmem_max; the default of half that size costs 10% more work.
_PAIR_BYTES: Final = 1 << 20
_STOP_SECONDS: Final = 2.0


@final
class CarriedLane:
    """An authenticated lane inside TLS, with the interface of a socket."""

    def __init__(
        self, wire: SecureSocket, start: Callable[[LaneRelay], None], *, serves: bool
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
        self._relay = LaneRelay(wire.sock, wire.session, outer, serves=serves)

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

    def _begin(self, relay: LaneRelay) -> None:
        with self._lock:
            if not self._threads:
                relay.close()
                return
            self._turn = (self._turn + 1) % len(self._threads)
            self._threads[self._turn].add(relay)


@final
class _RelayThread:
    """Serves a number of relays until `stop`."""

    def __init__(self, name: str) -> None:
        self._arrived: deque[LaneRelay] = deque()
        self._stopping = False
        self._relays: dict[int, LaneRelay] = {}  # by either descriptor
        self._events: dict[int, int] = {}  # events waited for, by descriptor
        self._buffers = Buffers()
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        try:
            start(self._thread, "link_clusters")
        except LLMException as error:
            self._release()
            raise OSError(str(error)) from error

    def add(self, relay: LaneRelay) -> None:
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
            arrivals = False
            for fd, events in self._epoll.poll():
                if fd == self._wake:
                    arrivals = True
                elif (relay := self._relays.get(fd)) is not None:
                    self._turn(relay, fd, events)
            # Last: a new relay may have the descriptors of one that ended in this round, whose
            # other event must not reach it.
            if arrivals:
                self._admit()
        for relay in {*self._relays.values(), *self._arrived}:
            relay.close()
        self._relays.clear()

    def _admit(self) -> None:
        os.eventfd_read(self._wake)
        while self._arrived:
            relay = self._arrived.popleft()
            for sock in (relay.wire, relay.outer):
                self._relays[sock.fileno()] = relay
            self._turn(relay, -1, 0)

    def _turn(self, relay: LaneRelay, fd: int, events: int) -> None:
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
