"""TLS over memory buffers (`ssl.MemoryBIO`), and its handshake over a socket.

A session is used by the control connection (`connection`), the handshake of a lane (`SecureSocket`)
and an encrypted lane (`relay`).

The end of the TCP stream is the end of a session, without a closing alert. Everything inside has a
length, so that a truncated stream is never taken for a shorter message.
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
    """A TLS handshake failed, or the peer sent an invalid record."""


def _explained(error: ssl.SSLError) -> str:
    """Return the problem, and the end at which it is."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the peer's certificate is refused by this end: {error.verify_message}"
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
        context: This end's context, for this direction.
        accepting: Whether the peer dialed.
    """

    def __init__(self, context: ssl.SSLContext, *, accepting: bool) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_side=accepting)

    @property
    def version(self) -> str:
        """TLS version; known after the handshake."""
        return self._ssl.version() or "TLS"

    def feed(self, records: bytes | memoryview) -> None:
        """Add bytes received from the peer."""
        self._incoming.write(records)

    def shake(self) -> bool:
        """Continue the handshake with the bytes fed so far; return whether it is complete.

        Raises:
            TlsError: It failed; `records` has the alert for the peer.
        """
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise TlsError(_explained(error)) from error
        return True

    def records(self) -> bytes:
        """Return the records to send to the peer now."""
        return self._outgoing.read()

    def encrypt(self, data: bytes | memoryview) -> bytes:
        """Return the records that encrypt some bytes."""
        view = memoryview(data)
        while view:
            view = view[self._ssl.write(view) :]
        return self.records()

    def decrypt_into(self, buffer: bytearray | memoryview) -> int:
        """Decrypt the peer's next bytes into a buffer; return their number, 0 if more must be fed.

        Raises:
            EOFError: The peer has ended the session.
            TlsError: A record is malformed or was changed, or the peer sent an alert.
        """
        try:
            got = cast("int", self._ssl.read(len(buffer), buffer))  # given a buffer, the number
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
    """Do the TLS handshake on a non-blocking socket; the caller limits the time and closes it.

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
        if alert := session.records():  # or the last message of the handshake
            with contextlib.suppress(OSError):
                await loop.sock_sendall(sock, alert)
    return session


async def drain(sock: socket.socket) -> None:
    """Wait a moment until the peer has read everything, before the socket is closed.

    Closing with unread data would reset the connection, and the peer would not get the reason.
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
        session: TLS session; None without TLS.
    """

    def __init__(self, sock: socket.socket, session: TlsSession | None) -> None:
        self.sock = sock
        self.session = session

    async def send(self, data: bytes) -> None:
        """Send all data; OSError when the connection broke."""
        if self.session is not None:
            data = self.session.encrypt(data)
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def receive_exactly(self, size: int) -> bytes:
        """Receive exactly `size` bytes.

        Raises:
            EOFError: The peer closed before.
            TlsError: A record is malformed.
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
