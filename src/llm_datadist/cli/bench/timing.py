"""Figures, and times of single calls."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Row", "latencies", "percentile"]

_WARM_CALLS = 200


@dataclass
class Row:
    """One case of one contender.

    Attributes:
        case: Name of the case.
        contender: Name of the contender.
        unit: Of `values`: "GB/s" (more is better) or "us" (less is better).
        values: One per round.
    """

    case: str
    contender: str
    unit: str
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median of the values."""
        return statistics.median(self.values)


def latencies(run: Callable[[], object], count: int, seconds: float = float("inf")) -> list[float]:
    """Return microseconds of `count` single calls, sorted, after a warm-up.

    Fewer when `seconds` are over, a quarter of which are for the warm-up; one at least.
    """
    begin = time.perf_counter()
    for _ in range(min(count, _WARM_CALLS)):
        run()
        if time.perf_counter() - begin > seconds / 4:
            break
    values: list[float] = []
    while len(values) < count and (not values or time.perf_counter() - begin < seconds):
        started = time.perf_counter_ns()
        run()
        values.append((time.perf_counter_ns() - started) / 1e3)
    return sorted(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value below which `percent` of the sorted values are."""
    return values[min(len(values) - 1, int(len(values) * percent / 100))]
