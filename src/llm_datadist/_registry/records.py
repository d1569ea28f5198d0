"""Records of a directory, which describes an instance's caches to its peers.

The owner appends them to its published log, peers parse the log by version (`reader`). A log is a
sequence of frames: a little-endian u32 length, then one msgpack record. A whole log, and every
piece between two versions of one era, holds whole frames.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Annotated, TypeAlias

import msgspec

from llm_datadist._plan.layouts import MAX_LAYOUT_BYTES
from llm_datadist._protocol.codec import DECODE_ERRORS
from llm_datadist._protocol.messages import Uint32, Uint64
from llm_datadist._protocol.texts import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_datadist._types import CacheKey

#: (req_id, model_id, prefix_id): a CacheKey without its cluster id, which selects the directory.
KeyName: TypeAlias = tuple[int, int, int]

Int32: TypeAlias = Annotated[int, msgspec.Meta(ge=-(1 << 31), lt=1 << 31)]
Guard: TypeAlias = tuple[Uint64, Uint64]

#: Of a whole log; a node's own has that capacity.
MAX_LOG_BYTES = 64 << 20
#: Of one record, so that parsing one takes little time; MAX_KEYS of them are of one cache.
MAX_RECORD_BYTES = 1 << 20
MAX_KEYS = 1 << 14
MAX_DIMENSIONS = 64
#: Of a whole directory: what a peer keeps in its memory.
MAX_CACHES = 1 << 17
MAX_ALL_KEYS = 1 << 18

#: Why a cache or key is gone; a reader ignores numbers that it does not know.
CONSUMED = 1
REMOVED = 2
UNREGISTERED = 3
DEALLOCATED = 4
Reason: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=256)]

_LENGTH = struct.Struct("<I")


class CorruptDirectory(Exception):
    """A peer's directory breaks the protocol; its link cannot be used.

    The text may quote the peer: it is `shown`.
    """

    def __init__(self, text: str) -> None:
        super().__init__(shown(text))


class KeyRecord(msgspec.Struct, array_like=True, frozen=True):
    """One CacheKey of a cache.

    Attributes:
        req_id, model_id, prefix_id: The key.
        slot: The slot that it names.
        guard: Its guard at the owner; live until the key is consumed or removed.
    """

    req_id: Uint64
    model_id: Uint64
    prefix_id: Uint64
    slot: Uint32
    guard: Guard

    @property
    def name(self) -> KeyName:
        """The key's name."""
        return self.req_id, self.model_id, self.prefix_id


class Added(msgspec.Struct, array_like=True, frozen=True, tag=1, gc=False):
    """A cache exists. A later record with the same blocks key, or the same key, wins.

    Attributes:
        cache_id: Its id.
        entry: Its guard at the owner.
        is_blocks: Whether dimension 0 counts blocks.
        num_tensors, shape, data_type, placement, batch_dim_index: Its description.
        addrs: Address of each tensor, little-endian u64; empty when not accessible.
        accessible: Whether peers may touch it.
        named: Whether its id can be used in keys (not after deallocate_cache).
        blocks_key: model_id of its BlocksCacheKey, if it has one.
        keys: Its CacheKeys.
        on_device: Whether its memory is an accelerator's, which only some data paths reach.
        kv_layout: Byte form of its KvLayout; empty if it has none.
    """

    cache_id: Uint64
    entry: Guard
    is_blocks: bool
    num_tensors: Uint32
    shape: Annotated[tuple[Uint64, ...], msgspec.Meta(max_length=MAX_DIMENSIONS)]
    data_type: Int32
    placement: Int32
    batch_dim_index: Int32
    addrs: Annotated[bytes, msgspec.Meta(max_length=MAX_RECORD_BYTES)]
    accessible: bool
    named: bool = True
    blocks_key: Uint64 | None = None
    keys: Annotated[tuple[KeyRecord, ...], msgspec.Meta(max_length=MAX_KEYS)] = ()
    on_device: bool = False
    kv_layout: Annotated[bytes, msgspec.Meta(max_length=MAX_LAYOUT_BYTES)] = b""


class Removed(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """A cache and its keys are gone; its guards were closed before."""

    cache_id: Uint64
    reason: Reason


class KeyRemoved(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """A key of a cache is gone, consumed or removed."""

    cache_id: Uint64
    guard: Guard
    reason: Reason


class Unnamed(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """The id of a cache is gone (deallocate_cache); its keys still hold it."""

    cache_id: Uint64


class Remapped(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """The entry of a cache has a new value."""

    cache_id: Uint64
    value: Uint64


Record: TypeAlias = Added | Removed | KeyRemoved | Unnamed | Remapped

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


def key_name(key: CacheKey) -> KeyName:
    """Return the name of `key` in its owner's tables."""
    return key.req_id, key.model_id, key.prefix_id


def encode_frame(record: Record) -> bytes:
    """Return the frame of a record."""
    body = _encode(record)
    return _LENGTH.pack(len(body)) + body


def decode_frames(log: bytes) -> Iterator[Record]:
    """Yield the records of whole frames.

    Raises:
        CorruptDirectory: The bytes are not whole frames of valid records.
    """
    for record, _ in decode_frames_with_ends(log):
        yield record


def decode_frames_with_ends(log: bytes) -> Iterator[tuple[Record, int]]:
    """As `decode_frames`, each record with the offset behind its frame."""
    view = memoryview(log)
    offset = 0
    while offset < len(view):
        begin = offset + _LENGTH.size
        if begin > len(view):
            raise CorruptDirectory(f"{len(view) - offset} bytes behind the last record")
        size = _LENGTH.unpack_from(view, begin - _LENGTH.size)[0]
        if size > MAX_RECORD_BYTES:
            raise CorruptDirectory(f"a record of {size} bytes; {MAX_RECORD_BYTES} are the most")
        offset = begin + size
        if offset > len(view):
            raise CorruptDirectory(f"a record is cut off {offset - len(view)} bytes before its end")
        try:
            record: Record = _decode(view[begin:offset])
        except DECODE_ERRORS as error:
            raise CorruptDirectory(f"a record cannot be read: {error}") from error
        yield record, offset
