"""Two processes on one host: pulls, pushes, small calls and local copies, beside the rivals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bench import timing
from bench.timing import Goal
from bench.turns import alternate, busy_call_times
from llm_datadist.cli.bench import work
from llm_datadist.cli.bench.datadist import Datadist, DatadistPool, register
from llm_datadist.cli.bench.driver import Driver, call_times, prepare, prepare_write, start
from llm_datadist.cli.bench.limits import BareReadv, BigMemcpy
from llm_datadist.cli.bench.rival_nixl import PACKAGE, Nixl
from llm_datadist.cli.bench.timing import Row

if TYPE_CHECKING:
    from llm_datadist.cli.bench.contender import Contender

MIB = work.MIB
DATADIST, POOL, NIXL = Datadist.name, DatadistPool.name, Nixl.name
READV, MEMCPY = BareReadv.name, BigMemcpy.name
_CALLS = 3000


def cases(scale: float) -> list[work.Case]:
    """1 MiB and 32 KiB blocks of 512 MiB, 4 KiB blocks of 128 MiB; `scale` shrinks the totals."""
    sizes = ((MIB, 512), (32 << 10, 512), (4 << 10, 128))
    return [
        work.Case(_size(block), block, max(block * 2, work.whole_mib(total * MIB * scale)))
        for block, total in sizes
    ]


def _size(block: int) -> str:
    return f"{block >> 20} MiB" if block >= MIB else f"{block >> 10} KiB"


class SameHost:
    """The comparison; one contender is awake at a time."""

    def __init__(self, rounds: int, scale: float) -> None:
        self.rounds, self.scale = rounds, scale
        self.rows: list[Row] = []
        self.goals: list[Goal] = []
        size = max(work.whole_mib(512 * MIB * scale), 8 * MIB)  # 8: the small calls
        kinds: list[type[Contender]] = [Datadist, DatadistPool, BareReadv, BigMemcpy]
        if PACKAGE is not None:
            kinds.append(Nixl)
        self._drivers = start(kinds, size)

    def run(self) -> None:
        for case in cases(self.scale):
            self._pulls(case)
            self._pushes(case)
        self._pool_pull()
        self._small_calls()
        self._busy_owner()
        rows, goals = self._drivers[DATADIST].call(local_copies, self.rounds, self.scale)
        self.rows += rows
        self.goals += goals

    def close(self) -> None:
        for driver in self._drivers.values():
            driver.close()

    def _ready(self, case: work.Case, *names: str) -> list[Driver]:
        drivers = [self._drivers[name] for name in names if name in self._drivers]
        for driver in drivers:
            driver.call(prepare, case)
        return drivers

    def _pulls(self, case: work.Case) -> None:
        name = f"pull {case.name}"
        drivers = self._ready(case, DATADIST, NIXL, READV)
        self.rows += alternate(name, case, "read", drivers, self.rounds)
        nixl_goal = {"1 MiB": 2.0, "32 KiB": 3.0, "4 KiB": 5.0}[case.name]
        self.goals.append(Goal(name, DATADIST, NIXL, nixl_goal))
        if case.name == "32 KiB":
            self.goals.append(Goal(name, DATADIST, READV, 0.9))

    def _pushes(self, case: work.Case) -> None:
        name = f"push {case.name}"
        drivers = self._ready(case, DATADIST, NIXL)
        for driver in drivers:
            driver.call(prepare_write, case)
        self.rows += alternate(name, case, "write", drivers, self.rounds)
        wanted = {"1 MiB": 1.7, "32 KiB": 2.5, "4 KiB": 2.5}[case.name]
        self.goals.append(Goal(name, DATADIST, NIXL, wanted))

    def _pool_pull(self) -> None:
        name, case = "pull from pool 32 KiB", cases(self.scale)[1]
        drivers = [*self._ready(case, POOL, NIXL), self._drivers[MEMCPY]]
        self.rows += alternate(name, case, "read", drivers, self.rounds)
        self.goals += [Goal(name, POOL, NIXL, 4.5), Goal(name, POOL, MEMCPY, 0.85)]

    def _small_calls(self) -> None:
        p50, p99 = self._drivers[DATADIST].call(call_times, _CALLS, (50, 99))
        self.rows += [
            Row("one 4 KiB block, p50", DATADIST, "us", [p50]),
            Row("one 4 KiB block, p99", DATADIST, "us", [p99]),
            Row("one 4 KiB block, p50", "goal", "us", [30.0]),
            Row("one 4 KiB block, p99", "goal", "us", [10 * p50]),
        ]
        self.goals += [
            Goal("one 4 KiB block, p50", DATADIST, "goal", 1.0),
            Goal("one 4 KiB block, p99", DATADIST, "goal", 1.0),
        ]
        many = work.Case("2,048 blocks of 4 KiB", 4096, 2048 * 4096)
        name = "pull 2,048 x 4 KiB in one call"
        drivers = self._ready(many, DATADIST, NIXL)
        self.rows += alternate(name, many, "read", drivers, max(self.rounds, 7), repeat=5)
        self.goals.append(Goal(name, DATADIST, NIXL, 8.0))

    def _busy_owner(self) -> None:
        (idle,) = self._drivers[DATADIST].call(call_times, _CALLS, (99,))
        (busy,) = self._drivers[DATADIST].call(busy_call_times, _CALLS, (99,))
        name = "one block p99 while the owner's interpreter spins"
        self.rows += [
            Row(name, "busy owner", "us", [busy]),
            Row(name, "2 x idle owner", "us", [2 * idle]),
            Row("longest lookup and pull p99", "busy owner", "us", [busy]),
            Row("longest lookup and pull p99", "1 ms", "us", [1000.0]),
        ]
        self.goals += [
            Goal(name, "busy owner", "2 x idle owner", 1.0),
            Goal("longest lookup and pull p99", "busy owner", "1 ms", 1.0),
        ]


def local_copies(datadist: Datadist, rounds: int, scale: float) -> tuple[list[Row], list[Goal]]:
    """copy_blocks and swap_blocks beside memcpy, in one process: none of it spins."""
    total = work.whole_mib(256 * MIB * scale)
    block = 64 << 10
    manager = datadist.instance.cache_manager
    case = work.Case("local copies", block, total)
    first = register(datadist.instance, datadist.local, case)
    other = work.buffer(total)
    second = register(datadist.instance, other, case)
    half = total // block // 2
    order = np.random.default_rng(3).permutation(half)
    copies = {int(src): [int(dst) + half] for src, dst in zip(range(half), order, strict=True)}
    swaps = {int(a): int(b) for a, b in zip(range(2 * half), _permutation(2 * half), strict=True)}
    memcpy = BigMemcpy(datadist.local)
    rows = timing.alternate(
        "copy_blocks",
        total // 2,
        {
            DATADIST: lambda: manager.copy_blocks(first, copies),
            MEMCPY: lambda: memcpy.copy(total // 2),
        },
        rounds,
        repeat=2,
    )
    rows += timing.alternate(
        "swap_blocks",
        total,
        {
            DATADIST: lambda: manager.swap_blocks(first, second, swaps),
            MEMCPY: lambda: memcpy.copy(total),
        },
        rounds,
    )
    memcpy.close()
    for cache in (first, second):
        manager.unregister_cache(cache.cache_id)
    return rows, [
        Goal("copy_blocks", DATADIST, MEMCPY, 0.9),
        Goal("swap_blocks", DATADIST, MEMCPY, 0.9),
    ]


def _permutation(count: int) -> np.ndarray:
    return np.random.default_rng(4).permutation(count)
