"""The relay of one encrypted lane: moves its bytes between the native core and TLS."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
from typing import TYPE_CHECKING, Final, final

from llm_datadist._control.sockets import plain_address, printed
from llm_datadist._control.tls import TlsError

if TYPE_CHECKING:
    from llm_datadist._control.tls import TlsSession

__all__ = ["Buffers", "LaneRelay"]

logger = logging.getLogger("llm_datadist")

_CHUNK_BYTES: Final = 256 << 10
_TURNS: Final = 4  # chunks of one lane before other lanes are served
_IN, _OUT, _RDHUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLRDHUP
_DEAD: Final = select.EPOLLHUP | select.EPOLLERR


@final
class LaneRelay:
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

    def on_wire(self, events: int, buffers: Buffers) -> None:
        """Handle an event on the wire."""
        if events & _OUT and self._to_peer:
            self._send_to_peer(self._to_peer)
        # For the end that serves, a lane that the peer has closed is over, even with data left.
        if events & _DEAD or (events & _RDHUP and self._serves):
            self._end_peer()
        elif events & (_IN | _RDHUP):
            self._receive_from_peer(buffers)

    def on_outer(self, events: int, buffers: Buffers) -> None:
        """Handle an event on the core's side."""
        if events & _OUT and self._to_core:
            self._send_to_core(self._to_core)
        if events & (_IN | _DEAD) and not self._core_ended:
            self._receive_from_core(buffers)
        if events & _DEAD:
            self.over = True

    def receive_fed(self, buffers: Buffers) -> None:
        """Relay the data that arrived with the end of the handshake."""
        self._decrypt(buffers)

    def _receive_from_peer(self, buffers: Buffers) -> None:
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

    def _decrypt(self, buffers: Buffers) -> None:
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

    def _receive_from_core(self, buffers: Buffers) -> None:
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


class Buffers:
    """Buffers that the relays of one thread share."""

    def __init__(self) -> None:
        self.encrypted = memoryview(bytearray(_CHUNK_BYTES))
        # The rest of an earlier record is added to the new data.
        self.plain = memoryview(bytearray(_CHUNK_BYTES + (32 << 10)))
