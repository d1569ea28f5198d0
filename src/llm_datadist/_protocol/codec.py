"""Encode and decode the preamble and control messages (length-prefixed msgpack).

Every connection begins with the preamble, 8 bytes::

    "LDD1" | kind u8 (1 control, 2 lane; 3 and 4 the same inside TLS) | 0 0 0

If the kind says so, TLS begins right after it.

A control connection then carries frames: body length u32 little-endian, body (msgpack of one
message). A lane carries the fixed messages of `lane_auth`.

Any bytes of a peer either parse or raise `ProtocolError`; no other exception is possible.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from functools import reduce
from operator import or_
from typing import Final

import msgspec

from llm_datadist._protocol.messages import MESSAGES, Message
from llm_datadist._protocol.texts import shown

__all__ = [
    "DECODE_ERRORS",
    "HEADER_BYTES",
    "MAX_FRAME_BYTES",
    "MAX_GREETING_BYTES",
    "PREAMBLE_BYTES",
    "Kind",
    "ProtocolError",
    "decode_header",
    "decode_message",
    "decode_preamble",
    "encode_frame",
    "encode_message",
    "encode_preamble",
]

PREAMBLE_BYTES: Final = 8
HEADER_BYTES: Final = 4
#: Largest body of an authenticated peer, and of an unauthenticated one.
MAX_FRAME_BYTES: Final = 1 << 20
MAX_GREETING_BYTES: Final = 64 << 10

#: Exceptions of msgspec for malformed bytes, including UTF-8 and nesting.
DECODE_ERRORS: Final = (ValueError, OverflowError, RecursionError, MemoryError)

_MAGIC: Final = b"LDD1"
_PREAMBLE: Final = struct.Struct("<4sB3s")
_HEADER: Final = struct.Struct("<I")

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(reduce(or_, MESSAGES))


class ProtocolError(Exception):
    """The peer sent something that the protocol does not allow; its connection must be closed.

    The text may quote the peer, so it is passed through `shown`.
    """

    def __init__(self, text: str) -> None:
        super().__init__(shown(text))


class Kind(IntEnum):
    """Purpose of a connection, and whether it uses TLS."""

    CONTROL = 1
    LANE = 2
    CONTROL_TLS = 3
    LANE_TLS = 4

    @property
    def uses_tls(self) -> bool:
        """Whether everything after the preamble is inside TLS."""
        return self in (Kind.CONTROL_TLS, Kind.LANE_TLS)

    @property
    def purpose(self) -> Kind:
        """CONTROL or LANE."""
        return Kind(self - 2) if self.uses_tls else self


def encode_preamble(kind: Kind) -> bytes:
    """Return the first bytes of a connection."""
    return _PREAMBLE.pack(_MAGIC, kind, bytes(3))


def decode_preamble(data: bytes) -> Kind:
    """Return the kind of a connection.

    Raises:
        ProtocolError: The bytes are no preamble of this protocol.
    """
    if len(data) != PREAMBLE_BYTES:
        raise ProtocolError(f"preamble of {len(data)} bytes, not {PREAMBLE_BYTES}")
    magic, kind, zeros = _PREAMBLE.unpack(data)
    if magic != _MAGIC or zeros != bytes(3) or kind not in tuple(Kind):
        raise ProtocolError(f"not a connection of llm-datadist (it begins with {data!r})")
    return Kind(kind)


def encode_message(message: Message) -> bytes:
    """Return the body of a message; equal messages give equal bytes."""
    return _encoder.encode(message)


def decode_message(body: bytes) -> Message:
    """Return the message in a body.

    Raises:
        ProtocolError: The body is no message.
    """
    try:
        return _decoder.decode(body)
    except DECODE_ERRORS as error:
        raise ProtocolError(f"malformed message of {len(body)} bytes: {error}") from error


def encode_frame(message: Message) -> bytes:
    """Return the frame of a message.

    Raises:
        ValueError: Its body is larger than MAX_FRAME_BYTES.
    """
    body = encode_message(message)
    if len(body) > MAX_FRAME_BYTES:
        kind = type(message).__name__
        raise ValueError(f"{kind} of {len(body)} bytes; at most {MAX_FRAME_BYTES} fit")
    return _HEADER.pack(len(body)) + body


def decode_header(header: bytes, limit: int = MAX_FRAME_BYTES) -> int:
    """Return the length of the body that follows a header.

    Raises:
        ProtocolError: The length is 0 or above `limit`, or the header has a wrong size.
    """
    if len(header) != HEADER_BYTES:
        raise ProtocolError(f"frame header of {len(header)} bytes, not {HEADER_BYTES}")
    (length,) = _HEADER.unpack(header)
    if not 0 < length <= limit:
        raise ProtocolError(f"frame of {length} bytes; 1 to {limit} are allowed")
    return int(length)
