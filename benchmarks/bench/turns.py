"""Turns of drivers, and actions of drivers that only these comparisons need."""

from __future__ import annotations

import resource
import threading
from typing import TYPE_CHECKING

from llm_datadist.cli.bench.driver import call_times, turn
from llm_datadist.cli.bench.timing import Row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_datadist.cli.bench.contender import Contender
    from llm_datadist.cli.bench.driver import Driver
    from llm_datadist.cli.bench.work import Case

_spin_ends = threading.Event()


def alternate(
    name: str, case: Case, what: str, drivers: Sequence[Driver], rounds: int, *, repeat: int = 1
) -> list[Row]:
    """Give every driver a turn in each round, with the others stopped; return GB/s."""
    rows = {driver.name: Row(name, driver.name, "GB/s") for driver in drivers}
    for _ in range(rounds):
        for driver in drivers:
            done, seconds = driver.call(turn, what, case, repeat)
            rows[driver.name].values.append(case.total_bytes * done / seconds / 1e9)
    return list(rows.values())


# Actions.


def busy_call_times(contender: Contender, count: int, percents: Sequence[float]) -> list[float]:
    """`call_times` while the owner's interpreter spins."""
    contender.owner.ask("run", start_to_spin)
    try:
        return call_times(contender, count, percents)
    finally:
        contender.owner.ask("run", stop_to_spin)


def cpu_us_per_gib(contender: Contender, case: Case) -> float:
    """Return CPU microseconds of both processes per GiB pulled."""
    begin = cpu_seconds() + contender.owner.ask("run", cpu_seconds)
    contender.read(case)
    used = cpu_seconds() + contender.owner.ask("run", cpu_seconds) - begin
    return float(used / case.total_bytes * (1 << 30) * 1e6)


# What owners run.


def start_to_spin() -> None:
    """Keep the interpreter busy on another thread."""
    _spin_ends.clear()
    threading.Thread(target=_spin, daemon=True).start()


def stop_to_spin() -> None:
    """End the thread of `start_to_spin`."""
    _spin_ends.set()


def _spin() -> None:
    number = 0
    while not _spin_ends.is_set():
        for _ in range(10_000):
            number = (number * 3 + 1) & 0xFFFF


def cpu_seconds() -> float:
    """Return what the process has used."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
