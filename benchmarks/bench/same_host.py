"""Two processes on one host: pulls, pushes, small calls and local copies, beside the rivals."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import numpy as np

from bench import timing, work
from bench.limits import BareReadv, BigMemcpy
from bench.ours import LOCAL_ID, OWNER_ID, Ours, OursPool, register
from bench.timing import Goal, Row

if TYPE_CHECKING:
    from bench.contender import Contender

MIB = work.MIB
OURS, POOL, NIXL = "llm-datadist", "llm-datadist (pool)", "NIXL (UCX)"
READV, MEMCPY = "bare process_vm_readv", "two-thread memcpy"


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
    """The comparison; every contender has its own owner process, the local buffer is shared."""

    def __init__(self, rounds: int, scale: float) -> None:
        self.rounds, self.scale = rounds, scale
        self.rows: list[Row] = []
        self.goals: list[Goal] = []
        self.local = work.buffer(
            max(work.whole_mib(512 * MIB * scale), 8 * MIB)
        )  # 8: the small calls
        self.ours, self.pool, self.bare = (
            Ours(self.local),
            OursPool(self.local),
            BareReadv(self.local),
        )
        self.nixl: Contender | None = None
        if importlib.util.find_spec("nixl_cu12") is not None:
            from bench.rival_nixl import Nixl  # noqa: PLC0415

            self.nixl = Nixl(self.local)

    def run(self) -> None:
        for case in cases(self.scale):
            self._pulls(case)
            self._pushes(case)
        self._pool_pull()
        self._small_calls()
        self._busy_owner()
        self._local_copies()

    def close(self) -> None:
        for contender in (self.ours, self.pool, self.bare, self.nixl):
            if contender is not None:
                contender.close()

    def _contenders(self, *wanted: Contender | None) -> list[Contender]:
        return [contender for contender in wanted if contender is not None]

    def _pulls(self, case: work.Case) -> None:
        contenders = self._contenders(self.ours, self.nixl, self.bare)
        for contender in contenders:
            contender.prepare(case)
            self._verify_read(contender, case)
        name = f"pull {case.name}"
        self.rows += timing.alternate(
            name,
            case.total_bytes,
            {c.name: (lambda c=c: c.read(case)) for c in contenders},
            self.rounds,
        )
        nixl_goal = {"1 MiB": 2.0, "32 KiB": 3.0, "4 KiB": 5.0}[case.name]
        self.goals.append(Goal(name, OURS, NIXL, nixl_goal))
        if case.name == "32 KiB":
            self.goals.append(Goal(name, OURS, READV, 0.9))

    def _pushes(self, case: work.Case) -> None:
        contenders = self._contenders(self.ours, self.nixl)
        for contender in contenders:
            self._verify_write(contender, case)
        name = f"push {case.name}"
        self.rows += timing.alternate(
            name,
            case.total_bytes,
            {c.name: (lambda c=c: c.write(case)) for c in contenders},
            self.rounds,
        )
        wanted = {"1 MiB": 1.7, "32 KiB": 2.5, "4 KiB": 2.5}[case.name]
        self.goals.append(Goal(name, OURS, NIXL, wanted))

    def _pool_pull(self) -> None:
        case = cases(self.scale)[1]
        self.pool.owner.ask("fill", 99)
        self.pool.prepare(case)
        self.local[:] = 0
        self.pool.read(case)
        if not np.array_equal(self.local[: case.total_bytes], work.expected(case, 99)):
            raise RuntimeError("pool pull: wrong bytes")
        memcpy = BigMemcpy(self.local)
        contenders = {POOL: lambda: self.pool.read(case)}
        if self.nixl is not None:
            nixl = self.nixl
            nixl.prepare(case)
            contenders[NIXL] = lambda: nixl.read(case)
        contenders[MEMCPY] = lambda: memcpy.copy(case.total_bytes)
        name = "pull from pool 32 KiB"
        self.rows += timing.alternate(name, case.total_bytes, contenders, self.rounds)
        self.goals += [Goal(name, POOL, NIXL, 4.5), Goal(name, POOL, MEMCPY, 0.85)]
        memcpy.close()

    def _small_calls(self) -> None:
        one = work.Case("one 4 KiB block", 4096, 4096)
        self.ours.prepare(one)
        values = timing.latencies(lambda: self.ours.read(one), 3000)
        p50, p99 = timing.percentile(values, 50), timing.percentile(values, 99)
        self.rows += [
            Row("one 4 KiB block, p50", OURS, "us", [p50]),
            Row("one 4 KiB block, p99", OURS, "us", [p99]),
            Row("one 4 KiB block, p50", "goal", "us", [30.0]),
            Row("one 4 KiB block, p99", "goal", "us", [10 * p50]),
        ]
        self.goals += [
            Goal("one 4 KiB block, p50", OURS, "goal", 1.0),
            Goal("one 4 KiB block, p99", OURS, "goal", 1.0),
        ]
        many = work.Case("2,048 blocks of 4 KiB", 4096, 2048 * 4096)
        contenders = self._contenders(self.ours, self.nixl)
        for contender in contenders:
            contender.prepare(many)
        self.rows += timing.alternate(
            "pull 2,048 x 4 KiB in one call",
            many.total_bytes,
            {c.name: (lambda c=c: c.read(many)) for c in contenders},
            max(self.rounds, 7),
            repeat=5,
        )
        self.goals.append(Goal("pull 2,048 x 4 KiB in one call", OURS, NIXL, 8.0))

    def _busy_owner(self) -> None:
        one = work.Case("one 4 KiB block", 4096, 4096)
        self.ours.prepare(one)
        idle = timing.latencies(lambda: self.ours.read(one), 3000)
        self.ours.owner.ask("busy", True)
        busy = timing.latencies(lambda: self.ours.read(one), 3000)
        self.ours.owner.ask("busy", False)
        name = "one block p99 while the owner's interpreter spins"
        self.rows += [
            Row(name, "busy owner", "us", [timing.percentile(busy, 99)]),
            Row(name, "2 x idle owner", "us", [2 * timing.percentile(idle, 99)]),
            Row("longest lookup and pull p99", "busy owner", "us", [timing.percentile(busy, 99)]),
            Row("longest lookup and pull p99", "1 ms", "us", [1000.0]),
        ]
        self.goals += [
            Goal(name, "busy owner", "2 x idle owner", 1.0),
            Goal("longest lookup and pull p99", "busy owner", "1 ms", 1.0),
        ]

    def _local_copies(self) -> None:
        total = work.whole_mib(256 * MIB * self.scale)
        block = 64 << 10
        manager = self.ours.instance.cache_manager
        first = register(self.ours.instance, work.address(self.local), total, block)
        other = work.buffer(total)
        second = register(self.ours.instance, work.address(other), total, block)
        half = total // block // 2
        order = np.random.default_rng(3).permutation(half)
        copies = {int(src): [int(dst) + half] for src, dst in zip(range(half), order, strict=True)}
        swaps = {
            int(a): int(b) for a, b in zip(range(2 * half), _permutation(2 * half), strict=True)
        }
        memcpy = BigMemcpy(self.local)
        self.rows += timing.alternate(
            "copy_blocks",
            total // 2,
            {
                OURS: lambda: manager.copy_blocks(first, copies),
                MEMCPY: lambda: memcpy.copy(total // 2),
            },
            self.rounds,
            repeat=2,
        )
        self.rows += timing.alternate(
            "swap_blocks",
            total,
            {
                OURS: lambda: manager.swap_blocks(first, second, swaps),
                MEMCPY: lambda: memcpy.copy(total),
            },
            self.rounds,
        )
        self.goals += [
            Goal("copy_blocks", OURS, MEMCPY, 0.9),
            Goal("swap_blocks", OURS, MEMCPY, 0.9),
        ]
        memcpy.close()
        for cache in (first, second):
            manager.unregister_cache(cache.cache_id)

    def _verify_read(self, contender: Contender, case: work.Case) -> None:
        seed = case.block_bytes + len(contender.name)
        contender.owner.ask("fill", seed)
        self.local[: case.total_bytes] = 0
        contender.read(case)
        if not np.array_equal(self.local[: case.total_bytes], work.expected(case, seed)):
            raise RuntimeError(f"{contender.name}: pull {case.name}: wrong bytes")

    def _verify_write(self, contender: Contender, case: work.Case) -> None:
        seed = case.block_bytes + 1
        work.fill(self.local[: case.total_bytes], seed)
        contender.write(case)
        there = contender.owner.ask("digest", case.total_bytes)
        if there != work.digest(work.expected(case, seed)):
            raise RuntimeError(f"{contender.name}: push {case.name}: wrong bytes")


def _permutation(count: int) -> np.ndarray:
    return np.random.default_rng(4).permutation(count)


__all__ = ["LOCAL_ID", "OWNER_ID", "SameHost"]
