"""Records of the log of regions: an owner's registered memory, as peers look it up.

The log is memory that peers read over their lanes, so neither a registration nor its discovery
needs a message or the owner's interpreter: a peer that does not know a range reads the new records.
The log's era changes when it is rewritten.

Each record has a MAC. Its key is known only to holders of the secret, or with TLS to linked peers,
so on plain lanes an attacker on the path cannot change what the engine loads. What a peer itself
writes is checked field by field: a record that cannot describe a region is ignored.
"""

from __future__ import annotations

import hmac
import struct
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta

from llm_datadist._backends.nixl.metadata import MAX_ADDRESS
from llm_datadist._backends.transfer import MemoryKind
from llm_datadist._protocol.codec import DECODE_ERRORS

if TYPE_CHECKING:
    from llm_datadist._backends.transfer import U64Array

LOG_BYTES: Final = 4 << 20
_HEADER: Final = struct.Struct("<QQ")  # era, bytes of records
_MAC_BYTES: Final = 16
FRAME: Final = struct.Struct(f"<I{_MAC_BYTES}s")  # bytes, MAC
_PLACE: Final = struct.Struct("<QQ")  # era, offset of the record
HEADER_BYTES: Final = _HEADER.size

_MAX_SIZE: Final = 1 << 46
_MAX_RANGES: Final = 1 << 16


RegionId = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Words = Annotated[bytes, Meta(min_length=8, max_length=8 * _MAX_RANGES)]


class RegionAdded(msgspec.Struct, array_like=True, frozen=True, tag="a"):
    """A region was added: its tensors, and the engine's metadata."""

    region_id: RegionId
    kind: MemoryKind
    unit_bytes: Annotated[int, Meta(ge=0, le=_MAX_SIZE)]
    device_id: Annotated[int, Meta(ge=0, le=0xFFFF)]
    addresses: Words
    sizes: Words
    metadata: Annotated[bytes, Meta(min_length=1)]

    @property
    def is_sane(self) -> bool:
        """Whether its ranges can be those of a process."""
        if len(self.addresses) != len(self.sizes) or len(self.addresses) % 8:
            return False
        addresses, sizes = words(self.addresses), words(self.sizes)
        return bool((addresses <= MAX_ADDRESS).all() and (sizes <= _MAX_SIZE).all())


class RegionRemoved(msgspec.Struct, array_like=True, frozen=True, tag="g"):
    """A region was removed."""

    region_id: RegionId


Record: TypeAlias = RegionAdded | RegionRemoved

_decoder: Final = msgspec.msgpack.Decoder(Record)


def log_key(secret: bytes | None, salt: bytes) -> bytes:
    """Return the key of a log's records.

    Args:
        secret: The configured secret.
        salt: Random, chosen by the log's owner and sent in the handshake, which TLS encrypts.
    """
    return hmac.digest(secret or b"", b"llm-datadist regions 1" + salt, "sha256")


def mac_of(key: bytes, era: int, at: int, body: bytes) -> bytes:
    """Return the MAC of a record at offset `at`."""
    return hmac.digest(key, _PLACE.pack(era, at) + body, "sha256")[:_MAC_BYTES]


def framed(record: Record, key: bytes, era: int, at: int) -> bytes:
    """Return a record as it stands in the log at offset `at`."""
    body = msgspec.msgpack.encode(record)
    return FRAME.pack(len(body), mac_of(key, era, at, body)) + body


def parse_record(body: bytes) -> Record | None:
    """Return the record in `body`; None unless it can describe a region."""
    try:
        record = _decoder.decode(body)
    except DECODE_ERRORS:
        return None
    return record if isinstance(record, RegionRemoved) or record.is_sane else None


def header_of(era: int, tail: int) -> bytes:
    """Return the header of a log with `tail` bytes of records."""
    return _HEADER.pack(era, tail)


def parse_header(data: bytes) -> tuple[int, int]:
    """Return (era, bytes of records)."""
    era, tail = _HEADER.unpack(data)
    return era, min(tail, LOG_BYTES - HEADER_BYTES)


def joined(addresses: U64Array, sizes: U64Array) -> tuple[U64Array, U64Array]:
    """Merge ranges that touch, as plans do; sorted by address."""
    order = np.argsort(addresses, kind="stable")
    starts, ends = addresses[order], addresses[order] + sizes[order]
    first = np.ones(len(starts), bool)
    first[1:] = starts[1:] != ends[:-1]
    begins = starts[first]
    last = np.append(np.flatnonzero(first)[1:] - 1, len(starts) - 1)
    return begins, ends[last] - begins


def words(data: bytes) -> U64Array:
    """Decode addresses or sizes of a record."""
    return np.frombuffer(data, "<u8").astype(np.uint64)


def words_bytes(values: U64Array) -> bytes:
    """Encode addresses or sizes for a record."""
    return np.ascontiguousarray(values).astype("<u8").tobytes()
