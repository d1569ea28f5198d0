"""Frames that a hostile peer sends on lanes, and the answers."""

from __future__ import annotations

import struct
from typing import NamedTuple

from llm_datadist._native import DENIED, GONE, LOCAL_GONE, OK, PROTOCOL, SYSTEM
from support.framing import MAGIC, header_of

__all__ = ["DENIED", "GONE", "LOCAL_GONE", "OK", "PROTOCOL", "SYSTEM"]

READ, WRITE, PUSH, CONSUME, VERSION, READ_LOG, PING, CHECKSUM, PROBE, GATHER = range(1, 11)
INLINE = 2
ANY_ENTRY, NOTHING = (0xFFFFFFFF, 0), (0, 0)
PAGE = 4096


class Answer(NamedTuple):
    """The answer to a request; code None: the lane was closed without an outcome."""

    code: int | None
    data: bytes = b""
    errno: int = 0
    index: int = -1
    moved: int = 0
    value: int = 0


def frame_of(kind, body, sequence=1, **header):
    """A frame without its tag, which `FramedSocket` puts in."""
    return header_of(kind, len(body), sequence=sequence, **header) + body


def request_of(kind, descriptors, cache, key, odd):
    """A request without its tag."""
    words = [word for column in zip(*descriptors, strict=True) for word in column]
    words = odd.get("columns", words)
    fixed = [
        odd.get("deadline", 0),
        odd.get("left", 10**10),
        odd.get("version", 0),
        *cache,
        *key,
        *odd.get("log", (0, 0)),
    ]
    count = odd.get("count", len(descriptors))
    body = struct.pack("<9QII", *fixed, count, odd.get("reserved", 0))
    body += struct.pack(f"<{len(words)}Q", *words)
    flags = odd.get("flags", INLINE if kind == WRITE else 0)
    return frame_of(kind, body, flags=flags, magic=odd.get("magic", MAGIC))
