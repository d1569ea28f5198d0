"""What an owner tells of its registered memory, and how a peer looks it up.

The owner keeps a log of records in memory that peers read over their lanes, so that neither a
registration nor its discovery costs a message or the owner's interpreter: a peer that misses memory
reads what is new in the log. The log's era changes when it is written anew.
"""

from __future__ import annotations

import mmap
import struct
import threading
import zlib
from typing import TYPE_CHECKING, Final, final

import msgspec
import numpy as np

if TYPE_CHECKING:
    from llm_datadist._backends.base import U64Array
    from llm_datadist._backends.node import Node
    from llm_datadist._backends.outcomes import Ref

__all__ = [
    "HEADER_BYTES",
    "Added",
    "Gone",
    "RegionLog",
    "RemoteRegions",
    "joined",
    "parse_header",
    "words",
    "words_bytes",
]

_LOG_BYTES: Final = 4 << 20
_HEADER: Final = struct.Struct("<QQ")  # era, bytes of records
_FRAME: Final = struct.Struct("<II")  # bytes, checksum
HEADER_BYTES: Final = _HEADER.size


class Added(msgspec.Struct, array_like=True, frozen=True, tag="a"):
    """A region: its tensors, and what the engine needs to reach it."""

    region_id: int
    kind: str
    unit_bytes: int
    device_id: int
    addresses: bytes
    sizes: bytes
    metadata: bytes


class Gone(msgspec.Struct, array_like=True, frozen=True, tag="g"):
    """A region is no more."""

    region_id: int


_decoder: Final = msgspec.msgpack.Decoder(Added | Gone)


def _frame(record: Added | Gone) -> bytes:
    body = msgspec.msgpack.encode(record)
    return _FRAME.pack(len(body), zlib.crc32(body)) + body


def parse_header(data: bytes) -> tuple[int, int]:
    """Return (era, bytes of records)."""
    era, tail = _HEADER.unpack(data)
    return era, min(tail, _LOG_BYTES - HEADER_BYTES)


@final
class RegionLog:
    """The owner's end. Thread-safe."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._memory = mmap.mmap(-1, _LOG_BYTES)
        self._lock = threading.Lock()
        self._live: dict[int, Added] = {}
        self._era = 1
        self._tail = 0
        address = np.frombuffer(self._memory, np.uint8).ctypes.data
        self.address = int(address)
        self.ref: Ref = node.open_entry([self.address], [_LOG_BYTES], accessible=True)
        self._write_header()

    def add(self, record: Added) -> None:
        """Publish a region."""
        with self._lock:
            self._live[record.region_id] = record
            self._append(_frame(record))

    def remove(self, region_id: int) -> None:
        """Say that a region is gone."""
        with self._lock:
            if self._live.pop(region_id, None) is not None:
                self._append(_frame(Gone(region_id)))

    def close(self) -> None:
        """End it. Idempotent."""
        self._node.close_entry(*self.ref)

    def _append(self, frame: bytes) -> None:
        begin = HEADER_BYTES + self._tail
        if begin + len(frame) > _LOG_BYTES:
            self._rewrite()
            return
        self._memory[begin : begin + len(frame)] = frame
        self._tail += len(frame)
        self._write_header()

    def _rewrite(self) -> None:
        self._era += 1
        self._tail = 0
        self._write_header()
        for record in self._live.values():  # what does not fit is moved over lanes
            frame = _frame(record)
            begin = HEADER_BYTES + self._tail
            if begin + len(frame) > _LOG_BYTES:
                break
            self._memory[begin : begin + len(frame)] = frame
            self._tail += len(frame)
        self._write_header()

    def _write_header(self) -> None:
        self._memory[:HEADER_BYTES] = _HEADER.pack(self._era, self._tail)


@final
class RemoteRegions:
    """A peer's regions as far as they are known here. Not thread-safe.

    Attributes:
        era, tail: How far its log has been read.
        known: Regions by id.
    """

    def __init__(self) -> None:
        self.era = self.tail = 0
        self.known: dict[int, Added] = {}
        self._starts: U64Array = np.empty(0, np.uint64)
        self._ends: U64Array = self._starts
        self._owners: np.ndarray[tuple[int], np.dtype[np.int64]] = np.empty(0, np.int64)

    def take(self, era: int, data: bytes) -> list[Added]:
        """Take in more of the log; return what was added. A torn record and what follows wait."""
        if era != self.era:
            self.era, self.tail, self.known = era, 0, {}
        added: list[Added] = []
        at = 0
        while at + _FRAME.size <= len(data):
            size, checksum = _FRAME.unpack_from(data, at)
            body = data[at + _FRAME.size : at + _FRAME.size + size]
            if len(body) != size or zlib.crc32(body) != checksum:
                break
            record = _decoder.decode(body)
            at += _FRAME.size + size
            if isinstance(record, Added):
                self.known[record.region_id] = record
                added.append(record)
            else:
                self.known.pop(record.region_id, None)
        self.tail += at
        self._index()
        return added

    def forget(self, address: int, size: int) -> list[int]:
        """Drop the regions that touch a range; return their ids."""
        gone = [
            region_id
            for region_id, record in self.known.items()
            if (
                (words(record.addresses) < np.uint64(address + size))
                & (words(record.addresses) + words(record.sizes) > np.uint64(address))
            ).any()
        ]
        for region_id in gone:
            del self.known[region_id]
        self._index()
        return gone

    def drop(self, region_id: int) -> None:
        """Take a region for one that is not there."""
        self.known.pop(region_id, None)
        self._index()

    def locate(self, remote: U64Array, length: U64Array) -> Added | bool:
        """Find ranges: the one region that all lie in, True for several of one kind, else False."""
        if not len(self._starts):
            return False
        at = np.searchsorted(self._starts, remote, side="right") - 1
        left = self._ends[at] - remote  # wraps around where the range begins behind the region
        if ((at < 0) | (remote > self._ends[at]) | (length > left)).any():
            return False
        ids = np.unique(self._owners[at])
        first = self.known[int(ids[0])]
        if len(ids) == 1:
            return first
        return all(self.known[int(each)].kind == first.kind for each in ids)

    def _index(self) -> None:
        columns = [
            (words(record.addresses), words(record.sizes), region_id)
            for region_id, record in self.known.items()
        ]
        none: U64Array = np.empty(0, np.uint64)
        starts = np.concatenate([column[0] for column in columns] or [none])
        ends = starts + np.concatenate([column[1] for column in columns] or [none])
        owners = np.concatenate(
            [np.full(len(column[0]), column[2], np.int64) for column in columns]
            or [np.empty(0, np.int64)]
        )
        order = np.argsort(starts, kind="stable")  # of equal ones the last added counts
        self._starts, self._ends, self._owners = starts[order], ends[order], owners[order]


def joined(addresses: U64Array, sizes: U64Array) -> tuple[U64Array, U64Array]:
    """Make one range of those that touch, as plans do of neighbours; in order of address."""
    order = np.argsort(addresses, kind="stable")
    starts, ends = addresses[order], addresses[order] + sizes[order]
    first = np.ones(len(starts), bool)
    first[1:] = starts[1:] != ends[:-1]
    begins = starts[first]
    last = np.append(np.flatnonzero(first)[1:] - 1, len(starts) - 1)
    return begins, ends[last] - begins


def words(data: bytes) -> U64Array:
    """Read addresses or sizes of a record."""
    return np.frombuffer(data, "<u8").astype(np.uint64)


def words_bytes(values: U64Array) -> bytes:
    """Write addresses or sizes for a record."""
    return np.ascontiguousarray(values).astype("<u8").tobytes()
