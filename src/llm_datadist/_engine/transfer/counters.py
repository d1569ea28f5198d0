"""Counts of an instance's transfers, by operation and path: bytes, durations, failures."""

from __future__ import annotations

import threading
from bisect import bisect_left
from typing import TYPE_CHECKING, Final, final

from llm_datadist._types.stats import Histogram, TransferStats

if TYPE_CHECKING:
    from llm_datadist._errors import LLMStatusCode

__all__ = ["BUCKET_BOUNDS", "NO_LINK", "TransferCounters"]

BUCKET_BOUNDS: Final = (
    1e-05, 2.5e-05, 5e-05, 1e-04, 2.5e-04, 5e-04, 1e-03, 2.5e-03, 5e-03,
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
"""Upper bounds of the buckets of durations, in seconds: from one block to a slow cache."""

NO_LINK: Final = "none"
"""Path of transfers that found no link."""

_BOUNDS_NS: Final = tuple(round(bound * 1e9) for bound in BUCKET_BOUNDS)


@final
class _Cell:
    """Counts of one operation over one path; change them under `lock`."""

    __slots__ = ("buckets", "failures", "lock", "num_bytes", "total_ns")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.num_bytes = self.total_ns = 0
        self.buckets = [0] * (len(_BOUNDS_NS) + 1)
        self.failures: dict[LLMStatusCode, int] = {}


@final
class TransferCounters:
    """Counts the transfers of one instance. Thread-safe.

    Each operation and path has a lock of its own, held for three additions.
    """

    def __init__(self) -> None:
        self._cells: dict[tuple[str, str], _Cell] = {}

    def add(self, operation: str, path: str, num_bytes: int, duration_ns: int) -> None:
        """Count a transfer that succeeded."""
        try:
            cell = self._cells[operation, path]
        except KeyError:
            cell = self._cells.setdefault((operation, path), _Cell())
        bucket = bisect_left(_BOUNDS_NS, duration_ns)
        with cell.lock:
            cell.num_bytes += num_bytes
            cell.total_ns += duration_ns
            cell.buckets[bucket] += 1

    def add_failure(self, operation: str, path: str, status: LLMStatusCode) -> None:
        """Count a transfer that failed."""
        cell = self._cells.setdefault((operation, path), _Cell())
        with cell.lock:
            cell.failures[status] = cell.failures.get(status, 0) + 1

    def stats(self) -> tuple[TransferStats, ...]:
        """Return the counts, sorted by operation and path."""
        return tuple(_stats(*key, self._cells[key]) for key in sorted(self._cells.copy()))


def _stats(operation: str, path: str, cell: _Cell) -> TransferStats:
    with cell.lock:
        num_bytes, total_ns = cell.num_bytes, cell.total_ns
        counts, failures = tuple(cell.buckets), dict(cell.failures)
    return TransferStats(
        operation=operation,
        path=path,
        completed=sum(counts),
        num_bytes=num_bytes,
        errors={status.name: number for status, number in failures.items()},
        seconds=Histogram(BUCKET_BOUNDS, counts, total_ns / 1e9),
    )
