"""The log of regions: an owner's registered memory, as peers look it up.

The log is memory that peers read over their lanes, so neither a registration nor its discovery
needs a message or the owner's interpreter: a peer that does not know a range reads the new records.
The log's era changes when it is rewritten.

Each record has a MAC. Its key is known only to holders of the secret, or with TLS to linked peers,
so on plain lanes no one on the path can change what the engine loads. What a peer itself writes is
checked field by field: a record that cannot describe a region is ignored.
"""

from __future__ import annotations

import hmac
import mmap
import struct
import threading
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple, final

import msgspec
import numpy as np
from msgspec import Meta

from llm_datadist._backends.nixl.metadata import MAX_ADDRESS
from llm_datadist._backends.transfer import MemoryKind
from llm_datadist._protocol.codec import DECODE_ERRORS

if TYPE_CHECKING:
    from llm_datadist._backends.node import Node
    from llm_datadist._backends.transfer import U64Array
    from llm_datadist._types.refs import Ref

_LOG_BYTES: Final = 4 << 20
_HEADER: Final = struct.Struct("<QQ")  # era, bytes of records
_MAC_BYTES: Final = 16
_FRAME: Final = struct.Struct(f"<I{_MAC_BYTES}s")  # bytes, MAC
_PLACE: Final = struct.Struct("<QQ")  # era, offset of the record
HEADER_BYTES: Final = _HEADER.size

_MAX_REGIONS: Final = 1 << 14
"""Of one peer; a valid log holds fewer."""
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


_decoder: Final = msgspec.msgpack.Decoder(RegionAdded | RegionRemoved)


def log_key(secret: bytes | None, salt: bytes) -> bytes:
    """Return the key of a log's records.

    Args:
        secret: The configured secret.
        salt: Random, chosen by the log's owner and sent in the handshake, which TLS encrypts.
    """
    return hmac.digest(secret or b"", b"llm-datadist regions 1" + salt, "sha256")


def _mac(key: bytes, era: int, at: int, body: bytes) -> bytes:
    return hmac.digest(key, _PLACE.pack(era, at) + body, "sha256")[:_MAC_BYTES]


def _frame(record: RegionAdded | RegionRemoved, key: bytes, era: int, at: int) -> bytes:
    body = msgspec.msgpack.encode(record)
    return _FRAME.pack(len(body), _mac(key, era, at, body)) + body


def _parse(body: bytes) -> RegionAdded | RegionRemoved | None:
    try:
        record = _decoder.decode(body)
    except DECODE_ERRORS:
        return None
    return record if isinstance(record, RegionRemoved) or record.is_sane else None


def parse_header(data: bytes) -> tuple[int, int]:
    """Return (era, bytes of records)."""
    era, tail = _HEADER.unpack(data)
    return era, min(tail, _LOG_BYTES - HEADER_BYTES)


@final
class RegionLog:
    """The owner's side of the log. Thread-safe.

    Args:
        node: The instance.
        key: See `log_key`.
    """

    def __init__(self, node: Node, key: bytes) -> None:
        self._node = node
        self._key = key
        self._memory = mmap.mmap(-1, _LOG_BYTES)
        self._lock = threading.Lock()
        self._live: dict[int, RegionAdded] = {}
        self._era = 1
        self._tail = 0
        address = np.frombuffer(self._memory, np.uint8).ctypes.data
        self.address = int(address)
        self.ref: Ref = node.open_entry([self.address], [_LOG_BYTES], accessible=True)
        self._write_header()

    def add(self, record: RegionAdded) -> None:
        """Publish a region."""
        with self._lock:
            self._live[record.region_id] = record
            self._append(record)

    def remove(self, region_id: int) -> None:
        """Publish that a region was removed."""
        with self._lock:
            if self._live.pop(region_id, None) is not None:
                self._append(RegionRemoved(region_id))

    def close(self) -> None:
        """Close the log's entry. Idempotent."""
        self._node.close_entry(*self.ref)

    def _append(self, record: RegionAdded | RegionRemoved) -> None:
        if self._write(record):
            self._write_header()
        else:
            self._rewrite()

    def _write(self, record: RegionAdded | RegionRemoved) -> bool:
        """Append a record; return False if it does not fit."""
        frame = _frame(record, self._key, self._era, self._tail)
        begin = HEADER_BYTES + self._tail
        if begin + len(frame) > _LOG_BYTES:
            return False
        self._memory[begin : begin + len(frame)] = frame
        self._tail += len(frame)
        return True

    def _rewrite(self) -> None:
        self._era += 1
        self._tail = 0
        self._write_header()
        for record in self._live.values():  # lanes move regions that do not fit
            if not self._write(record):
                break
        self._write_header()

    def _write_header(self) -> None:
        self._memory[:HEADER_BYTES] = _HEADER.pack(self._era, self._tail)


class News(NamedTuple):
    """New records of a log, and its position after them."""

    era: int
    tail: int
    records: list[RegionAdded | RegionRemoved]

    @property
    def added(self) -> list[RegionAdded]:
        """Regions that the records add and do not remove again."""
        live: dict[int, RegionAdded] = {}
        for each in self.records:
            if isinstance(each, RegionAdded):
                live[each.region_id] = each
            else:
                live.pop(each.region_id, None)
        return list(live.values())


@final
class RemoteRegions:
    """The known regions of a peer: the reader's side of its log. Not thread-safe.

    Args:
        key: See `log_key`.

    Attributes:
        era, tail: Position up to which the log has been read.
        known: Regions by id.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.era = self.tail = 0
        self.known: dict[int, RegionAdded] = {}
        self._starts: U64Array = np.empty(0, np.uint64)
        self._ends: U64Array = self._starts
        self._owners: np.ndarray[tuple[int], np.dtype[np.int64]] = np.empty(0, np.int64)

    def read(self, era: int, data: bytes) -> News:
        """Parse records from `tail` on, or from the beginning if the era is new.

        Stops at a torn record, or one with another MAC; later calls parse it again.
        """
        begin = self.tail if era == self.era else 0
        records: list[RegionAdded | RegionRemoved] = []
        at = 0
        while at + _FRAME.size <= len(data):
            size, mac = _FRAME.unpack_from(data, at)
            body = data[at + _FRAME.size : at + _FRAME.size + size]
            expected = _mac(self._key, era, begin + at, body)
            if len(body) != size or not hmac.compare_digest(mac, expected):
                break
            at += _FRAME.size + size
            record = _parse(body)
            if record is not None and len(records) < 2 * _MAX_REGIONS:
                records.append(record)
        return News(era, begin + at, records)

    def take(self, news: News) -> None:
        """Apply what the last call of `read` returned."""
        if news.era != self.era:
            self.known = {}
        self.era, self.tail = news.era, news.tail
        for record in news.records:
            if isinstance(record, RegionRemoved):
                self.known.pop(record.region_id, None)
            elif len(self.known) < _MAX_REGIONS:
                self.known[record.region_id] = record
        self._index()

    def forget(self, address: int, size: int) -> list[int]:
        """Drop the regions that overlap a range; return their ids."""
        begin, end = min(address, MAX_ADDRESS), min(address + size, 2 * MAX_ADDRESS)
        overlaps = (self._starts < np.uint64(end)) & (self._ends > np.uint64(begin))
        gone: list[int] = np.unique(self._owners[overlaps]).tolist()
        for region_id in gone:
            del self.known[region_id]
        self._index()
        return gone

    def locate(self, remote: U64Array, length: U64Array) -> RegionAdded | bool:
        """Return the region of all ranges; True for several of one kind; else False."""
        if not len(self._starts):
            return False
        at = np.searchsorted(self._starts, remote, side="right") - 1
        left = self._ends[at] - remote  # wraps around if the range begins behind the region
        if ((at < 0) | (remote > self._ends[at]) | (length > left)).any():
            return False
        ids = np.unique(self._owners[at])
        first = self.known[int(ids[0])]
        if len(ids) == 1:
            return first
        return all(self.known[int(each)].kind == first.kind for each in ids)

    def _index(self) -> None:
        records = self.known.values()
        counts = np.array([len(each.addresses) // 8 for each in records], np.int64)
        starts = words(b"".join(each.addresses for each in records))
        ends = starts + words(b"".join(each.sizes for each in records))
        owners = np.repeat(np.array(list(self.known), np.int64), counts)
        order = np.argsort(starts, kind="stable")  # of equal starts the last added counts
        self._starts, self._ends, self._owners = starts[order], ends[order], owners[order]


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
