"""A control connection: framed messages over one socket.

Loop thread only. The layers above do not depend on whether the connection uses TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Final, final

from llm_datadist._control.sockets import explained, limit_silence, unacknowledged_bytes
from llm_datadist._protocol.codec import (
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    MAX_GREETING_BYTES,
    decode_header,
    decode_message,
    encode_frame,
)
from llm_datadist._protocol.control_tags import TAG_BYTES, ControlKeys, ControlTags

if TYPE_CHECKING:
    import socket

    from llm_datadist._control.tls import TlsSession
    from llm_datadist._protocol.messages import Message

__all__ = ["ControlConnection", "PeerClosedError"]

_RECORDS_BYTES: Final = 64 << 10
_MAX_REST_READS: Final = 64  # of _RECORDS_BYTES; more than a socket buffers by default
_CONGESTED_BYTES: Final = 64 << 10


class PeerClosedError(ConnectionError):
    """The connection is over: this end or the peer closed it, or the peer died."""


@final
class _WholeStream(asyncio.StreamReaderProtocol):
    """A stream that delivers all received data, also when the connection breaks.

    asyncio discards received data as soon as a connection breaks: what it has read already, and
    what is in the socket when a write fails. A peer that unlinks and then resets the connection, as
    closing it with data unread does, would look like a peer that died.
    """

    def __init__(self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self._whole = reader
        self._socket: socket.socket | None = None
        self.end: str = "the peer closed the connection"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._socket = transport.get_extra_info("socket")

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, OSError):
            self.end = f"the connection broke: {explained(exc)}"
            self._take_the_rest()
            exc = None
        super().connection_lost(exc)

    def _take_the_rest(self) -> None:
        if self._socket is None:
            return
        with contextlib.suppress(OSError):  # the same error, after all data was read
            for _ in range(_MAX_REST_READS):
                data = os.read(self._socket.fileno(), _RECORDS_BYTES)
                if not data:
                    return
                self._whole.feed_data(data)


@final
class ControlConnection:
    """Framed messages over one socket. Loop thread only. Created by `open`."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        stream: _WholeStream,
        session: TlsSession | None = None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._stream = stream
        self._session = session
        self._tags: ControlTags | None = None
        self._limit = MAX_GREETING_BYTES
        self._finished = False
        self._draining = asyncio.Lock()  # Python 3.10 allows one waiter at a time

    @staticmethod
    async def open(
        sock: socket.socket, silence_ms: int = 20_000, session: TlsSession | None = None
    ) -> ControlConnection:
        """Take ownership of a connected socket, at either end; an exception closes it.

        Args:
            sock: Connected, non-blocking.
            silence_ms: How long the peer's host may leave data unacknowledged.
            session: TLS session after its handshake; None without TLS.
        """
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        protocol = _WholeStream(reader, loop)
        try:
            limit_silence(sock, silence_ms)
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock)
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            return ControlConnection(reader, writer, protocol, session)
        except BaseException:
            sock.close()
            raise

    def trust(self) -> None:
        """Allow the larger frames of an authenticated peer."""
        self._limit = MAX_FRAME_BYTES

    def authenticate(self, keys: ControlKeys) -> None:
        """Send every further message with a tag, and receive none without its tag."""
        self._tags = ControlTags(keys)

    @property
    def is_encrypted(self) -> bool:
        """Whether the connection uses TLS."""
        return self._session is not None

    @property
    def is_closing(self) -> bool:
        """Whether no further message can be sent."""
        return self._finished or self._writer.transport.is_closing()

    @property
    def is_congested(self) -> bool:
        """Whether much is queued, because the peer does not read as fast as this end sends."""
        return self._writer.transport.get_write_buffer_size() > _CONGESTED_BYTES

    def send(self, message: Message) -> None:
        """Queue a message; never blocks.

        Raises:
            PeerClosedError: The connection is over.
            ValueError: The message is too large.
        """
        frame = encode_frame(message)
        if self.is_closing:
            raise PeerClosedError("the connection is closed")
        if self._tags is not None:
            frame = self._tags.tagged(frame)
        self._writer.write(frame if self._session is None else self._session.encrypt(frame))

    async def drain(self) -> None:
        """Wait until little is queued, so that a peer that does not read is not served.

        Raises:
            PeerClosedError: The connection is over.
        """
        try:
            async with self._draining:
                await self._writer.drain()
        except OSError as error:
            raise PeerClosedError(f"the connection broke: {explained(error)}") from error

    async def receive(self) -> Message:
        """Return the next message, also one that arrived before the connection broke.

        Raises:
            PeerClosedError: The connection is over and all messages were returned.
            ProtocolError: The message is malformed, too large, or has a wrong tag.
        """
        try:
            header = await self._exactly(HEADER_BYTES)
            body = await self._exactly(decode_header(header, self._limit))
            tag = b"" if self._tags is None else await self._exactly(TAG_BYTES)
        except EOFError:  # includes IncompleteReadError
            raise PeerClosedError(self._stream.end) from None
        except OSError as error:
            raise PeerClosedError(f"the connection broke: {explained(error)}") from error
        if self._tags is not None:
            self._tags.check(header + body, tag)
        return decode_message(body)

    async def _exactly(self, size: int) -> bytes:
        session = self._session
        if session is None:
            return await self._reader.readexactly(size)
        data = bytearray(size)
        view = memoryview(data)
        while view:
            got = session.decrypt_into(view)
            view = view[got:]
            if answer := session.records():  # of the TLS protocol, such as a key update
                self._writer.write(answer)
            if got == 0:
                records = await self._reader.read(_RECORDS_BYTES)
                if not records:
                    raise EOFError
                session.feed(records)
        return bytes(data)

    async def wait_closed_by_peer(self) -> None:
        """Wait until the peer closes; discard what it sends before."""
        with contextlib.suppress(OSError):
            while await self._reader.read(4096):
                pass

    def close(self) -> None:
        """Close after the queued data was sent. Idempotent."""
        self._writer.close()

    def finish(self, seconds: float) -> None:
        """End sending; close when the peer closes, or after `seconds`. Idempotent.

        Unlike `close` it does not reset the connection when there is unread data, so that the peer
        receives the last messages.
        """
        if self.is_closing:
            return
        self._finished = True
        try:
            self._writer.write_eof()
        except OSError:  # broken already
            self.close()
        asyncio.get_running_loop().call_later(seconds, self.abort)

    @property
    def is_delivered(self) -> bool:
        """Whether the peer's host has acknowledged all data, or the connection is over."""
        return self._writer.transport.is_closing() or not (
            self._writer.transport.get_write_buffer_size()
            or unacknowledged_bytes(self._writer.get_extra_info("socket").fileno())
        )

    def abort(self) -> None:
        """Close immediately and discard queued data. Idempotent."""
        self._writer.transport.abort()
