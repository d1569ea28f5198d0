"""Listening sockets and incoming connections, until their peers are authenticated.

No peer is trusted before that. A connection that is malformed or slow is closed: each has until the
handshake deadline to authenticate, and when too many are unauthenticated the oldest is closed. Loop
thread only.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Final, final

from llm_datadist._control.complaints import Complaints
from llm_datadist._control.sockets import (
    descriptor_share,
    explained,
    plain_address,
    printed,
    receive_exactly,
    tune,
)
from llm_datadist._control.tls import TlsError, drain, shake_hands
from llm_datadist._protocol.codec import PREAMBLE_BYTES, Kind, ProtocolError, decode_preamble

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Awaitable, Callable, Mapping

    from llm_datadist._control.loop import ControlLoop
    from llm_datadist._control.sockets import Address
    from llm_datadist._control.tls import TlsSession

__all__ = ["HANDSHAKE_SECONDS", "MAX_UNPROVEN", "Doorway", "Listener", "Visit"]

logger = logging.getLogger("llm_datadist")

HANDSHAKE_SECONDS: Final = 10.0
MAX_UNPROVEN: Final = 256
_DESCRIPTOR_SHARE: Final = 8  # at most an eighth of RLIMIT_NOFILE
_ACCEPTS_AT_ONCE: Final = 64
_PAUSE_SECONDS: Final = 0.1
_COMPLAINT_SECONDS: Final = 10.0
_CLOSED: Final = "connection from %s closed: %s"


@final
class Visit:
    """An incoming connection until its peer is authenticated.

    Attributes:
        sock: The connection.
        session: TLS session after its handshake; None without TLS.
        peer: Remote address.
    """

    def __init__(self, sock: socket.socket, complaints: Complaints) -> None:
        self.sock = sock
        self.session: TlsSession | None = None
        self.peer = plain_address(sock.getpeername())
        self.refusal: str | None = None
        self._complaints = complaints
        self._is_proven = False
        self._task = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None
        self._leave: Callable[[Visit], object] | None = None

    def begin(self, seconds: float, leave: Callable[[Visit], object]) -> None:
        """Start the time limit for authentication."""
        reason = f"it did not prove itself within {seconds:g} s"
        self._leave = leave
        self._timer = asyncio.get_running_loop().call_later(seconds, self.refuse, reason)

    def proven(self) -> None:
        """Note that the peer is authenticated, which ends its time limit. Idempotent."""
        self._is_proven = True
        if self._timer is not None:
            self._timer.cancel()
        if self._leave is not None:
            self._leave(self)

    def complain(self, level: int, text: str, *args: object) -> None:
        """Log a line about the connection, rate-limited before it is authenticated."""
        if self._is_proven:
            logger.log(level, text, *args)
        else:
            self._complaints.say(level, self.peer[0], text, *args)

    def refuse(self, reason: str) -> None:
        """Cancel the task that serves it, from outside."""
        self.refusal = reason
        if self._task is not None:
            self._task.cancel()


@final
class Doorway:
    """Dispatches the connections of all listeners of an instance by their kind.

    Args:
        control: The instance's loop.
        routes: Handler for each kind of connection. It owns the visit's socket, must call
            `Visit.proven` when the peer is authenticated, and may raise ProtocolError,
            PeerClosedError, EOFError or OSError for the peer's errors.
        tls: For connections inside TLS; None refuses them. If connections without TLS must be
            refused, the handlers do it, since they can send the reason.
    """

    def __init__(
        self,
        control: ControlLoop,
        routes: Mapping[Kind, Callable[[Visit], Awaitable[None]]],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._control = control
        self._routes = routes
        self._tls = tls
        self._unproven: dict[Visit, None] = {}  # oldest first
        self._complaints = Complaints()

    def enter(self, sock: socket.socket) -> None:
        """Serve a connection that was just accepted."""
        self._control.spawn(self._serve(sock))

    @property
    def unproven(self) -> int:
        """Connections whose peers are not authenticated yet."""
        return len(self._unproven)

    async def _serve(self, sock: socket.socket) -> None:
        try:
            visit = Visit(tune(sock), self._complaints)
        except OSError:  # closed before it was served
            sock.close()
            return
        self._admit(visit)
        try:
            await self._route(visit)
        except (ConnectionError, EOFError) as error:  # includes PeerClosedError
            visit.complain(logging.INFO, _CLOSED, printed(visit.peer), _words(error))
        except (ProtocolError, OSError) as error:
            visit.complain(logging.WARNING, _CLOSED, printed(visit.peer), _words(error))
        except asyncio.CancelledError:
            if visit.refusal is None:
                raise
            visit.complain(logging.WARNING, _CLOSED, printed(visit.peer), visit.refusal)
        finally:
            visit.proven()

    async def _route(self, visit: Visit) -> None:
        try:
            preamble = await receive_exactly(visit.sock, PREAMBLE_BYTES)
        except (EOFError, ConnectionError):  # such as a port scan or a health check
            logger.debug("connection from %s closed before it said anything", printed(visit.peer))
            visit.sock.close()
            return
        except BaseException:
            visit.sock.close()
            raise
        try:
            kind = decode_preamble(preamble)
            if kind.uses_tls:
                await self._secure(visit)
        except BaseException:
            visit.sock.close()
            raise
        await self._routes[kind.purpose](visit)

    async def _secure(self, visit: Visit) -> None:
        if self._tls is None:
            raise ProtocolError(
                "it speaks TLS, and this instance has none; set llm.TlsCert, llm.TlsKey and "
                "llm.TlsCa on both sides or on neither"
            )
        try:
            visit.session = await shake_hands(visit.sock, self._tls, accepting=True)
        except TlsError as error:
            await drain(visit.sock)
            raise TlsError(f"TLS: {error}") from error

    def _admit(self, visit: Visit) -> None:
        limit = descriptor_share(_DESCRIPTOR_SHARE, MAX_UNPROVEN)
        if len(self._unproven) >= limit:
            oldest = next(iter(self._unproven))
            oldest.refuse(f"more than {limit} connections have not proved themselves")
            self._unproven.pop(oldest)
        self._unproven[visit] = None
        visit.begin(HANDSHAKE_SECONDS, lambda done: self._unproven.pop(done, None))


@final
class Listener:
    """Accepts connections on one listening socket until `close`."""

    def __init__(self, doorway: Doorway, sock: socket.socket) -> None:
        self.address: Address = plain_address(sock.getsockname())
        self._doorway = doorway
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._accept)
        self._complained = -math.inf

    def close(self) -> None:
        """Stop accepting and free the port; accepted connections continue. Idempotent."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(error)
                return
            self._doorway.enter(sock)

    def _pause(self, error: OSError) -> None:
        """Stop accepting for a moment when files or memory are exhausted, instead of spinning.

        New connections wait in the backlog meanwhile.
        """
        if self._loop.time() - self._complained > _COMPLAINT_SECONDS:
            self._complained = self._loop.time()
            where = printed(self.address)
            logger.error("cannot accept connections on %s yet: %s", where, explained(error))
        self._loop.remove_reader(self._sock)
        self._loop.call_later(_PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.add_reader(self._sock, self._accept)


def _words(error: Exception) -> str:
    """Return the text of an exception; logging the exception would keep its frames alive."""
    return explained(error) if isinstance(error, OSError) and error.errno else str(error)
