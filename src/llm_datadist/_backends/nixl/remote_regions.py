"""The reader's side of a peer's log of regions: which regions the peer has."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final, NamedTuple, final

import numpy as np

from llm_datadist._backends.nixl.metadata import MAX_ADDRESS
from llm_datadist._backends.nixl.region_records import (
    FRAME,
    RegionAdded,
    RegionRemoved,
    mac_of,
    parse_record,
    words,
)

if TYPE_CHECKING:
    from llm_datadist._backends.nixl.region_records import Record
    from llm_datadist._backends.transfer import U64Array

_MAX_REGIONS: Final = 1 << 14
"""Of one peer; a valid log holds fewer."""


class News(NamedTuple):
    """New records of a log, and its position after them."""

    era: int
    tail: int
    records: list[Record]

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
        records: list[Record] = []
        at = 0
        while at + FRAME.size <= len(data):
            size, mac = FRAME.unpack_from(data, at)
            body = data[at + FRAME.size : at + FRAME.size + size]
            expected = mac_of(self._key, era, begin + at, body)
            if len(body) != size or not hmac.compare_digest(mac, expected):
                break
            at += FRAME.size + size
            record = parse_record(body)
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
