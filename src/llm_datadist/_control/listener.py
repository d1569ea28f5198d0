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

from llm_datadist._control.sockets import (
    descriptor_share,
    explained,
    plain_address,
    printed,
    receive_exactly,
    tune,
)
from llm_datadist._control.stranger_log import StrangerLog
from llm_datadist._control.tls import TlsError, drain, shake_hands
from llm_datadist._protocol.codec import PREAMBLE_BYTES, Kind, ProtocolError, decode_preamble

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Awaitable, Callable, Mapping

    from llm_datadist._control.loop import ControlLoop
    from llm_datadist._control.sockets import Address
    from llm_datadist._control.tls import TlsSession

__all__ = [
    "HANDSHAKE_SECONDS",
    "MAX_UNAUTHENTICATED",
    "ConnectionRouter",
    "Listener",
    "IncomingConnection",
]

logger = logging.getLogger("llm_datadist")

HANDSHAKE_SECONDS: Final = 10.0
MAX_UNAUTHENTICATED: Final = 256
_DESCRIPTOR_SHARE: Final = 8  # at most an eighth of RLIMIT_NOFILE
_ACCEPTS_AT_ONCE: Final = 64
_PAUSE_SECONDS: Final = 0.1
_LOG_SECONDS: Final = 10.0
_CLOSED: Final = "connection from %s closed: %s"


@final
class IncomingConnection:
    """An incoming connection until its peer is authenticated.

    Attributes:
        sock: The connection.
        session: TLS session after its handshake; None without TLS.
        peer: Remote address.
    """

    def __init__(self, sock: socket.socket, stranger_log: StrangerLog) -> None:
        self.sock = sock
        self.session: TlsSession | None = None
        self.peer = plain_address(sock.getpeername())
        self.refusal: str | None = None
        self._stranger_log = stranger_log
        self._is_authenticated = False
        self._task = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None
        self._leave: Callable[[IncomingConnection], object] | None = None

    def begin(self, seconds: float, leave: Callable[[IncomingConnection], object]) -> None:
        """Start the time limit for authentication."""
        reason = f"it did not prove itself within {seconds:g} s"
        self._leave = leave
        self._timer = asyncio.get_running_loop().call_later(seconds, self.refuse, reason)

    def set_authenticated(self) -> None:
        """Note that the peer is authenticated, which ends its time limit. Idempotent."""
        self._is_authenticated = True
        if self._timer is not None:
            self._timer.cancel()
        if self._leave is not None:
            self._leave(self)

    def log(self, level: int, text: str, *args: object) -> None:
        """Log a line about the connection, rate-limited before it is authenticated."""
        if self._is_authenticated:
            logger.log(level, text, *args)
        else:
            self._stranger_log.log(level, self.peer[0], text, *args)

    def refuse(self, reason: str) -> None:
        """Cancel the task that serves it, from outside."""
        self.refusal = reason
        if self._task is not None:
            self._task.cancel()


@final
class ConnectionRouter:
    """Dispatches the connections of all listeners of an instance by their kind.

    Args:
        control: The instance's loop.
        routes: Handler for each kind of connection. It owns the socket, must call
            `set_authenticated` when the peer is authenticated, and may raise ProtocolError,
            PeerClosedError, EOFError or OSError for the peer's errors.
        tls: For connections inside TLS; None refuses them. If connections without TLS must be
            refused, the handlers do it, since they can send the reason.
    """

    def __init__(
        self,
        control: ControlLoop,
        routes: Mapping[Kind, Callable[[IncomingConnection], Awaitable[None]]],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._control = control
        self._routes = routes
        self._tls = tls
        self._unauthenticated: dict[IncomingConnection, None] = {}  # oldest first
        self._stranger_log = StrangerLog()

    def serve(self, sock: socket.socket) -> None:
        """Serve a connection that was just accepted."""
        self._control.spawn(self._serve(sock))

    async def _serve(self, sock: socket.socket) -> None:
        try:
            incoming = IncomingConnection(tune(sock), self._stranger_log)
        except OSError:  # closed before it was served
            sock.close()
            return
        self._admit(incoming)
        try:
            await self._route(incoming)
        except (ConnectionError, EOFError) as error:  # includes PeerClosedError
            incoming.log(logging.INFO, _CLOSED, printed(incoming.peer), _words(error))
        except (ProtocolError, OSError) as error:
            incoming.log(logging.WARNING, _CLOSED, printed(incoming.peer), _words(error))
        except asyncio.CancelledError:
            if incoming.refusal is None:
                raise
            incoming.log(logging.WARNING, _CLOSED, printed(incoming.peer), incoming.refusal)
        finally:
            incoming.set_authenticated()

    async def _route(self, incoming: IncomingConnection) -> None:
        try:
            preamble = await receive_exactly(incoming.sock, PREAMBLE_BYTES)
        except (EOFError, ConnectionError):  # such as a port scan or a health check
            logger.debug("connection from %s closed without any data", printed(incoming.peer))
            incoming.sock.close()
            return
        except BaseException:
            incoming.sock.close()
            raise
        try:
            kind = decode_preamble(preamble)
            if kind.uses_tls:
                await self._secure(incoming)
        except BaseException:
            incoming.sock.close()
            raise
        await self._routes[kind.purpose](incoming)

    async def _secure(self, incoming: IncomingConnection) -> None:
        if self._tls is None:
            raise ProtocolError(
                "it speaks TLS, and this instance has none; set llm.TlsCert, llm.TlsKey and "
                "llm.TlsCa on both sides or on neither"
            )
        try:
            incoming.session = await shake_hands(incoming.sock, self._tls, accepting=True)
        except TlsError as error:
            await drain(incoming.sock)
            raise TlsError(f"TLS: {error}") from error

    def _admit(self, incoming: IncomingConnection) -> None:
        limit = descriptor_share(_DESCRIPTOR_SHARE, MAX_UNAUTHENTICATED)
        if len(self._unauthenticated) >= limit:
            oldest = next(iter(self._unauthenticated))
            oldest.refuse(f"more than {limit} connections have not proved themselves")
            self._unauthenticated.pop(oldest)
        self._unauthenticated[incoming] = None
        incoming.begin(HANDSHAKE_SECONDS, lambda done: self._unauthenticated.pop(done, None))


@final
class Listener:
    """Accepts connections on one listening socket until `close`."""

    def __init__(self, router: ConnectionRouter, sock: socket.socket) -> None:
        self.address: Address = plain_address(sock.getsockname())
        self._router = router
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._accept)
        self._logged_at = -math.inf

    @property
    def is_open(self) -> bool:
        """Whether it accepts connections."""
        return self._sock.fileno() >= 0

    def close(self) -> None:
        """Stop accepting and free the port; accepted connections continue. Idempotent."""
        if self.is_open:
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
            self._router.serve(sock)

    def _pause(self, error: OSError) -> None:
        """Stop accepting for a moment when files or memory are exhausted, instead of spinning.

        New connections wait in the backlog meanwhile.
        """
        if self._loop.time() - self._logged_at > _LOG_SECONDS:
            self._logged_at = self._loop.time()
            where = printed(self.address)
            logger.error("cannot accept connections on %s yet: %s", where, explained(error))
        self._loop.remove_reader(self._sock)
        self._loop.call_later(_PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        if self.is_open:
            self._loop.add_reader(self._sock, self._accept)


def _words(error: Exception) -> str:
    """Return the text of an exception; logging the exception would keep its frames alive."""
    return explained(error) if isinstance(error, OSError) and error.errno else str(error)
