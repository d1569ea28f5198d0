"""Messages between a group and its peers: u32 length, little endian, then a msgpack struct."""

from __future__ import annotations

import socket
import struct
import threading
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from llm_datadist.testing.exits import Finished, Raised, Value

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_MESSAGE_BYTES = 256 << 20
SEND_WITHIN_S = 20  # a frozen peer reads nothing


class Start(msgspec.Struct, frozen=True, tag="start"):
    """First message to a peer: what to run.

    Attributes:
        module, file, qualname: The body; see `_bodies`.
        args: Its arguments after the peer's own end.
        name, index: Name and number of the peer.
        timeout_s: Default bound of its waits.
        sys_path: Import path of the group's process.
    """

    module: str
    file: str
    qualname: str
    args: list[Value]
    name: str
    index: int
    timeout_s: float
    sys_path: list[str]


class Sent(msgspec.Struct, frozen=True, tag="sent"):
    """A value for the other end's `receive`."""

    value: Value


class EventSet(msgspec.Struct, frozen=True, tag="event"):
    """An event of the group happened."""

    name: str
    value: Value


class Arrived(msgspec.Struct, frozen=True, tag="arrived"):
    """A peer waits at a barrier of so many parties."""

    name: str
    parties: int


class Released(msgspec.Struct, frozen=True, tag="released"):
    """All parties of a barrier have arrived."""

    name: str


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """The group ends: waits of the peer end with GroupClosed."""


Message: TypeAlias = Start | Sent | EventSet | Arrived | Released | Stop | Finished | Raised

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


class Connection:
    """One end of a peer's socket pair. Sending is thread-safe; one thread reads."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", SEND_WITHIN_S, 0)
        )
        self._sending = threading.Lock()
        self._received = bytearray()

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, message: Message) -> None:
        """Send one message; nothing happens if the peer is gone, which its exit shows."""
        data = _encoder.encode(message)
        with self._sending:
            try:
                self._sock.sendall(len(data).to_bytes(4, "little") + data)
            except BlockingIOError:
                raise TimeoutError(f"the peer took no bytes for {SEND_WITHIN_S} s") from None
            except OSError:
                return

    def read(self) -> tuple[list[Message], bool]:
        """Wait for bytes; return the messages they complete, and whether the other end is gone."""
        try:
            data = self._sock.recv(1 << 16)
        except OSError:
            data = b""
        self._received += data
        return list(self._split()), not data

    def drain(self) -> list[Message]:
        """Return what a peer sent before it ended; never waits."""
        self._sock.setblocking(False)
        messages: list[Message] = []
        ended = False
        while not ended:
            more, ended = self.read()
            messages += more
        return messages

    def _split(self) -> Iterator[Message]:
        while len(self._received) >= 4:
            size = int.from_bytes(self._received[:4], "little")
            if size > MAX_MESSAGE_BYTES:
                raise ValueError(f"message of {size} bytes, limit {MAX_MESSAGE_BYTES}")
            if len(self._received) < 4 + size:
                return
            data = bytes(self._received[4 : 4 + size])
            del self._received[: 4 + size]
            yield _decoder.decode(data)

    def shut(self) -> None:
        """Shut the socket down, so that readers of both ends return."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def close(self) -> None:
        self._sock.close()


def connection_pair() -> tuple[Connection, socket.socket]:
    """Return the group's end and the socket of the peer's end."""
    group_sock, peer_sock = socket.socketpair()
    return Connection(group_sock), peer_sock
