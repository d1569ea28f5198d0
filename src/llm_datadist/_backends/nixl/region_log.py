"""The owner's side of the log of regions: memory that peers read over their lanes."""

from __future__ import annotations

import mmap
import threading
from typing import TYPE_CHECKING, final

import numpy as np

from llm_datadist._backends.nixl.region_records import (
    HEADER_BYTES,
    LOG_BYTES,
    RegionRemoved,
    framed,
    header_of,
)

if TYPE_CHECKING:
    from llm_datadist._backends.nixl.region_records import Record, RegionAdded
    from llm_datadist._backends.node import Node
    from llm_datadist._types.refs import Ref


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
        self._memory = mmap.mmap(-1, LOG_BYTES)
        self._lock = threading.Lock()
        self._live: dict[int, RegionAdded] = {}
        self._era = 1
        self._tail = 0
        address = np.frombuffer(self._memory, np.uint8).ctypes.data
        self.address = int(address)
        self.ref: Ref = node.open_entry([self.address], [LOG_BYTES], accessible=True)
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
        """Unmap the log; no lane reads it any more. Later records are ignored. Idempotent."""
        self._node.close_entry(*self.ref)
        with self._lock:
            self._memory.close()

    def _append(self, record: Record) -> None:
        if self._memory.closed:
            return
        if self._write(record):
            self._write_header()
        else:
            self._rewrite()

    def _write(self, record: Record) -> bool:
        """Append a record; return False if it does not fit."""
        frame = framed(record, self._key, self._era, self._tail)
        begin = HEADER_BYTES + self._tail
        if begin + len(frame) > LOG_BYTES:
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
        self._memory[:HEADER_BYTES] = header_of(self._era, self._tail)
