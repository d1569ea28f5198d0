"""Writer of the directory: appends records and compacts the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import msgspec

from llm_datadist._registry.records import (
    MAX_ALL_KEYS,
    MAX_CACHES,
    MAX_DIMENSIONS,
    MAX_KEYS,
    MAX_RECORD_BYTES,
    Added,
    KeyRemoved,
    Remapped,
    Removed,
    Unnamed,
    encode_frame,
)

if TYPE_CHECKING:
    from llm_datadist._registry.interfaces import Log
    from llm_datadist._registry.records import Record
    from llm_datadist._types.refs import Ref

_SMALL_LOG = 256 << 10
"""A log shorter than this is not worth compacting (bytes)."""

_WASTE = 4
"""A log is compacted when it is this many times as long as what is alive in it."""

_GROWTH = 16
"""By how many bytes a record may grow before it is compacted (its entry's value does)."""


class DirectoryFull(Exception):
    """The directory has no room for another record, even when compacted; nothing was written."""


@final
class DirectoryWriter:
    """Publishes changes of the caches; keeps what is alive, to compact the log.

    Args:
        log: The published log; this is its only writer.
        capacity: Bytes that the log can hold.

    Not thread-safe: the registry calls it under its lock.
    """

    def __init__(self, log: Log, capacity: int) -> None:
        self._log = log
        self._capacity = capacity
        self._tail = 0
        self._alive: dict[int, Added] = {}
        self._sizes: dict[int, int] = {}
        self._alive_bytes = 0
        self._blocks_keys: dict[int, int] = {}
        self._num_keys = 0

    @property
    def tail(self) -> int:
        """Bytes of the log."""
        return self._tail

    def add(self, record: Added) -> None:
        """Publish a cache.

        Raises:
            DirectoryFull: There is no room for it.
        """
        frame = encode_frame(record)
        size = len(frame) + _GROWTH
        self._check_room(record, size)
        self._alive[record.cache_id] = record
        self._sizes[record.cache_id] = size
        self._alive_bytes += size
        self._num_keys += len(record.keys)
        if record.blocks_key is not None:
            loser = self._blocks_keys.get(record.blocks_key)
            if loser is not None:
                self._change(loser, blocks_key=None)
            self._blocks_keys[record.blocks_key] = record.cache_id
        self._write(frame)

    def remove(self, cache_id: int, reason: int) -> None:
        """Publish that a cache is gone, and why (`records`)."""
        record = self._alive.pop(cache_id)
        self._alive_bytes -= self._sizes.pop(cache_id)
        self._num_keys -= len(record.keys)
        if record.blocks_key is not None:
            self._blocks_keys.pop(record.blocks_key)
        self._append(Removed(cache_id, reason))

    def remove_key(self, cache_id: int, guard: Ref, reason: int) -> None:
        """Publish that a key of a cache is gone, and why (`records`)."""
        keys = self._alive[cache_id].keys
        left = tuple(key for key in keys if key.guard != guard)
        self._num_keys -= len(keys) - len(left)
        self._change(cache_id, keys=left)
        self._append(KeyRemoved(cache_id, guard, reason))

    def unname(self, cache_id: int) -> None:
        """Publish that the id of a cache is gone."""
        self._change(cache_id, named=False)
        self._append(Unnamed(cache_id))

    def remap(self, cache_id: int, value: int) -> None:
        """Publish the new value of a cache's entry."""
        self._change(cache_id, entry=(self._alive[cache_id].entry[0], value))
        self._append(Remapped(cache_id, value))

    def _check_room(self, record: Added, size: int) -> None:
        """Raise DirectoryFull if the log cannot hold a cache, or peers would refuse it."""
        limits = (
            ("bytes of the directory", self._alive_bytes + size, self._capacity),
            ("bytes of a cache's record", size, MAX_RECORD_BYTES),
            ("dimensions of a cache", len(record.shape), MAX_DIMENSIONS),
            ("keys of a cache", len(record.keys), MAX_KEYS),
            ("caches", len(self._alive) + 1, MAX_CACHES),
            ("keys of all caches", self._num_keys + len(record.keys), MAX_ALL_KEYS),
        )
        for what, wanted, most in limits:
            if wanted > most:
                raise DirectoryFull(f"{wanted} {what}; {most} are the most")

    def _change(self, cache_id: int, **fields: object) -> None:
        self._alive[cache_id] = msgspec.structs.replace(self._alive[cache_id], **fields)

    def _append(self, record: Record) -> None:
        self._write(encode_frame(record))

    def _write(self, frame: bytes) -> None:
        tail = self._tail + len(frame)
        full = tail > self._capacity
        if full or (tail > _SMALL_LOG and tail > _WASTE * self._alive_bytes):
            self._compact()
        else:
            self._log.append(frame)
            self._tail = tail

    def _compact(self) -> None:
        """Rewrite the log with all live records, including the current change."""
        frames = {cache_id: encode_frame(record) for cache_id, record in self._alive.items()}
        self._sizes = {cache_id: len(frame) + _GROWTH for cache_id, frame in frames.items()}
        self._alive_bytes = sum(self._sizes.values())
        log = b"".join(frames.values())
        self._log.rewrite(log)
        self._tail = len(log)
