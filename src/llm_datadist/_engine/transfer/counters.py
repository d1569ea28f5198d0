"""Counts of an instance's transfers, by operation and path: bytes, durations, failures."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Final, TypeAlias, final

from llm_datadist._types.stats import Histogram, TransferStats

if TYPE_CHECKING:
    from llm_datadist._errors import LLMStatusCode

__all__ = ["BUCKET_BOUNDS", "NO_LINK", "TransferCounters"]

NO_LINK: Final = "none"
"""Path of transfers that found no link."""

_FIRST, _LAST = 3, 24
BUCKET_BOUNDS: Final = tuple((1 << power) / 1e6 for power in range(_FIRST, _LAST + 1))
"""Upper bounds of the buckets of durations, in seconds: 8, 16, 32 us, ..., 16.8 s.

A power of two is found without a search.
"""

_POWERS: Final = 64


@final
class _Cell:
    """Counts of one operation over one path.

    Attributes:
        num_bytes: Of transfers that succeeded.
        total_ns: Their durations together.
        powers: How many of them took up to `1 << index` us, and longer than the index before.
        failures: Those that failed, by status.
    """

    __slots__ = ("failures", "num_bytes", "powers", "total_ns")

    def __init__(self) -> None:
        self.num_bytes = self.total_ns = 0
        self.powers = [0] * _POWERS
        self.failures: dict[LLMStatusCode, int] = {}

    def include(self, other: _Cell) -> None:
        """Add the counts of another cell."""
        self.num_bytes += other.num_bytes
        self.total_ns += other.total_ns
        self.powers = [sum(both) for both in zip(self.powers, other.powers, strict=True)]
        for status, number in other.failures.copy().items():
            self.failures[status] = self.failures.get(status, 0) + number


_Cells: TypeAlias = dict[str, dict[str, _Cell]]
"""Counts by path, then by operation."""


class _Token:
    """An object of each counting thread; its weak reference tells when the thread has ended."""

    __slots__ = ("__weakref__",)


class _OfThread(threading.local):
    """The cells of the thread that asks, which only that thread changes."""

    def __init__(self, counters: TransferCounters) -> None:
        self.token = _Token()
        self.cells = counters.cells_of(self.token)


@final
class TransferCounters:
    """Counts the transfers of one instance. Thread-safe.

    Each thread has counts of its own, so that counting takes no lock: one would cost as much as all
    the rest, and a signal handler could raise while it is held.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of_threads: list[tuple[weakref.ref[_Token], _Cells]] = []
        self._of_ended: _Cells = {}
        self._own = _OfThread(self)

    def add(self, operation: str, path: str, num_bytes: int, duration_ns: int) -> None:
        """Count a transfer that succeeded."""
        try:
            cell = self._own.cells[path][operation]
        except KeyError:
            cell = _cell(self._own.cells, path, operation)
        cell.num_bytes += num_bytes
        cell.total_ns += duration_ns
        cell.powers[((duration_ns - 1) // 1000).bit_length()] += 1

    def add_failure(self, operation: str, path: str, status: LLMStatusCode) -> None:
        """Count a transfer that failed."""
        failures = _cell(self._own.cells, path, operation).failures
        failures[status] = failures.get(status, 0) + 1

    def stats(self) -> tuple[TransferStats, ...]:
        """Return the counts, sorted by operation and path."""
        total: _Cells = {}
        with self._lock:
            self._forget_ended()
            _include(total, self._of_ended)
            for _, cells in self._of_threads:
                _include(total, cells)
        entries = [_stats(path, *item) for path in total for item in total[path].items()]
        return tuple(sorted(entries, key=lambda entry: (entry.operation, entry.path)))

    def cells_of(self, token: _Token) -> _Cells:
        """Return cells for a thread that lives as long as `token`."""
        cells: _Cells = {}
        with self._lock:
            self._forget_ended()
            self._of_threads.append((weakref.ref(token), cells))
        return cells

    def _forget_ended(self) -> None:
        """Add up the counts of threads that have ended."""
        living = []
        for entry in self._of_threads:
            if entry[0]() is None:
                _include(self._of_ended, entry[1])
            else:
                living.append(entry)
        self._of_threads = living


def _cell(cells: _Cells, path: str, operation: str) -> _Cell:
    return cells.setdefault(path, {}).setdefault(operation, _Cell())


def _include(total: _Cells, cells: _Cells) -> None:
    """Add the counts of a thread, which may go on counting."""
    for path, by_operation in cells.copy().items():
        for operation, cell in by_operation.copy().items():
            _cell(total, path, operation).include(cell)


def _stats(path: str, operation: str, cell: _Cell) -> TransferStats:
    powers = cell.powers
    middle = powers[_FIRST + 1 : _LAST + 1]
    counts = (sum(powers[: _FIRST + 1]), *middle, sum(powers[_LAST + 1 :]))
    return TransferStats(
        operation=operation,
        path=path,
        completed=sum(counts),
        num_bytes=cell.num_bytes,
        errors={status.name: number for status, number in cell.failures.items()},
        seconds=Histogram(BUCKET_BOUNDS, counts, cell.total_ns / 1e9),
    )
