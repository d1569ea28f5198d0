"""TLS of a connection, as records without a socket of its own, and its handshake over a socket.

One session serves the control connection (`connection`), the handshake of a lane (`SecureSocket`)
and, for as long as it lives, a lane whose bytes are encrypted (`relay`).

The end of the TCP stream is the end of a session; there are no farewells. Everything inside has a
length of its own, so that a stream which was cut is never taken for a shorter message.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import Final, cast, final

from llm_datadist._control.deadline import Deadline
from llm_datadist._control.sockets import explained, receive_exactly
from llm_datadist._protocol.codec import ProtocolError

__all__ = ["SecureSocket", "TlsError", "TlsSession", "drain", "shake_hands"]

_RECORD_BYTES: Final = 16 << 10
_DRAIN_SECONDS: Final = 1.0
_NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL"})
_CERTIFICATE: Final = frozenset({"unknown ca", "access denied", "decrypt error"})


class TlsError(ProtocolError):
    """A TLS handshake failed, or records of the peer are not what they should be."""


def _explained(error: ssl.SSLError) -> str:
    """Return what is wrong, and at which end."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the peer's certificate is refused here: {error.verify_message}"
    reason = error.reason or ""
    if "_ALERT_" in reason:
        alert = reason.partition("_ALERT_")[2].replace("_", " ").lower()
        if "certificate" in alert or alert in _CERTIFICATE:
            return f"the peer refuses this instance's certificate: {alert}"
        return f"the peer breaks off: {alert}"
    if reason in _NO_TLS:
        return "what answers does not speak TLS"
    return reason.replace("_", " ").lower() or str(error)


@final
class TlsSession:
    """One end of a TLS connection. One thread at a time.

    Args:
        context: Ours, for this direction.
        accepting: Whether the peer dialed.
    """

    def __init__(self, context: ssl.SSLContext, *, accepting: bool) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_side=accepting)

    @property
    def version(self) -> str:
        """Version of the protocol; known after the handshake."""
        return self._ssl.version() or "TLS"

    def feed(self, records: bytes | memoryview) -> None:
        """Take bytes that have come from the peer."""
        self._incoming.write(records)

    def shake(self) -> bool:
        """Go on with the handshake as far as what was fed allows; return whether it is complete.

        Raises:
            TlsError: It failed; `records` tells the peer why.
        """
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise TlsError(_explained(error)) from error
        return True

    def records(self) -> bytes:
        """Return what has to go to the peer now."""
        return self._outgoing.read()

    def encrypt(self, data: bytes | memoryview) -> bytes:
        """Return the records for some bytes."""
        view = memoryview(data)
        while view:
            view = view[self._ssl.write(view) :]
        return self.records()

    def decrypt_into(self, buffer: bytearray | memoryview) -> int:
        """Put the next bytes of the peer into a buffer; return how many, 0 before more is fed.

        Raises:
            EOFError: The peer has said that there will be no more.
            TlsError: A record is malformed or was changed, or the peer breaks off.
        """
        try:
            got = cast("int", self._ssl.read(len(buffer), buffer))  # with a buffer, how many
        except ssl.SSLWantReadError:
            return 0
        except ssl.SSLError as error:
            raise TlsError(_explained(error)) from error
        if got == 0:
            raise EOFError("the peer ended the TLS session")
        return got


async def shake_hands(
    sock: socket.socket, context: ssl.SSLContext, *, accepting: bool
) -> TlsSession:
    """Put TLS over a connected, non-blocking socket; the caller sets the time limit and closes it.

    Raises:
        TlsError: It failed, or the connection broke.
    """
    loop = asyncio.get_running_loop()
    session = TlsSession(context, accepting=accepting)
    try:
        while not session.shake():
            await loop.sock_sendall(sock, session.records())
            records = await loop.sock_recv(sock, _RECORD_BYTES)
            if not records:
                raise TlsError("the peer closed the connection instead of speaking TLS")
            session.feed(records)
    except OSError as error:
        reason = f"the peer closed the connection ({explained(error)}) instead of speaking TLS"
        raise TlsError(reason) from error
    finally:
        if alert := session.records():  # or the end of the handshake
            with contextlib.suppress(OSError):
                await loop.sock_sendall(sock, alert)
    return session


async def drain(sock: socket.socket) -> None:
    """Have the peer read what was sent last before the socket is closed; a moment at most.

    Closing with data unread would reset the connection, and cost the peer the reason.
    """
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError, asyncio.TimeoutError):
        sock.shutdown(socket.SHUT_WR)
        deadline = Deadline(_DRAIN_SECONDS)
        while await deadline.limit(loop.sock_recv(sock, _RECORD_BYTES)):
            pass


@final
class SecureSocket:
    """Exact sends and receives over a socket, inside TLS if it has a session.

    Attributes:
        sock: Connected, non-blocking.
        session: None without TLS.
    """

    def __init__(self, sock: socket.socket, session: TlsSession | None) -> None:
        self.sock = sock
        self.session = session

    async def send(self, data: bytes) -> None:
        """Send all of it; OSError when the connection broke."""
        if self.session is not None:
            data = self.session.encrypt(data)
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def receive_exactly(self, size: int) -> bytes:
        """Return the next `size` bytes.

        Raises:
            EOFError: The peer closed before.
            TlsError: Its records are malformed.
            OSError: The connection broke.
        """
        if self.session is None:
            return await receive_exactly(self.sock, size)
        loop = asyncio.get_running_loop()
        data = bytearray(size)
        view = memoryview(data)
        while view:
            got = self.session.decrypt_into(view)
            view = view[got:]
            if got == 0:
                records = await loop.sock_recv(self.sock, _RECORD_BYTES)
                if not records:
                    raise EOFError(f"closed after {size - len(view)} of {size} bytes")
                self.session.feed(records)
        return bytes(data)
