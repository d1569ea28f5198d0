"""Goals, and turns of contenders in one run, so that load on the machine affects all alike."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_datadist.cli.bench.timing import Row

if TYPE_CHECKING:
    from collections.abc import Callable


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


def once(run: Callable[[], object], total_bytes: int) -> float:
    """Return the rate of one call in GB/s."""
    begin = time.perf_counter()
    run()
    return total_bytes / (time.perf_counter() - begin) / 1e9


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
