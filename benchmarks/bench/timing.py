"""Timing: contenders take turns in one run, so that load on the machine affects all alike."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


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
        return statistics.median(self.values)


@dataclass
class Goal:
    """A ratio that is to be reached.

    Attributes:
        case: The case.
        contender, rival: Their ratio is contender / rival for GB/s and rival / contender for times.
        wanted: The least ratio.
        measured: The measured ratio.
    """

    case: str
    contender: str
    rival: str
    wanted: float
    measured: float = 0.0


def alternate(
    case: str,
    total_bytes: int,
    contenders: dict[str, Callable[[], object]],
    rounds: int,
    *,
    repeat: int = 1,
) -> list[Row]:
    """Run every contender once a round, after one warm-up each; GB/s of `total_bytes`."""
    rows = {name: Row(case, name, "GB/s") for name in contenders}
    for run in contenders.values():
        run()
    for _ in range(rounds):
        for name, run in contenders.items():
            begin = time.perf_counter()
            for _ in range(repeat):
                run()
            rows[name].values.append(total_bytes * repeat / (time.perf_counter() - begin) / 1e9)
    return list(rows.values())


def latencies(run: Callable[[], object], count: int) -> list[float]:
    """Microseconds of `count` single calls, sorted, after a warm-up."""
    for _ in range(min(count, 200)):
        run()
    values = []
    for _ in range(count):
        begin = time.perf_counter_ns()
        run()
        values.append((time.perf_counter_ns() - begin) / 1e3)
    return sorted(values)


def percentile(values: list[float], percent: float) -> float:
    return values[min(len(values) - 1, int(len(values) * percent / 100))]
