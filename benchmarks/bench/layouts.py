"""pull_resharded between unequal layouts beside pull_blocks between equal ones, in turns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import timing, turns
from bench.timing import Goal
from llm_datadist.cli.bench import work
from llm_datadist.cli.bench.contender import Owner, serve
from llm_datadist.cli.bench.datadist import start
from llm_datadist.cli.bench.timing import Row

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from llm_datadist import BlocksCacheKey, Cache, CacheManager, LLMDataDist

LAYERS, HEADS, HEAD_SIZE, TOKENS = 16, 8, 128, 4096
ROW_BYTES = HEAD_SIZE * 2
TOTAL = LAYERS * 2 * TOKENS * HEADS * ROW_BYTES  # 256 MiB
EQUAL = "pull_blocks, equal layouts"
RESHARDED = "pull_resharded"
WAYS = {"pull_resharded, in pieces": False, "pull_resharded, gathered": True}
TORCH = "pull_blocks, then torch"
BEST_WAY_PART = 0.8
TORCH_GOAL = 2.0


@dataclass(frozen=True)
class Shape:
    """Cache of one rank."""

    axes: str
    tp: int = 1
    rank: int = 0
    block_tokens: int = 16

    @property
    def heads(self) -> int:
        return HEADS // self.tp

    @property
    def num_blocks(self) -> int:
        return TOKENS // self.block_tokens

    @property
    def num_bytes(self) -> int:
        return TOTAL // self.tp

    def block_shape(self) -> tuple[int, ...]:
        pair = (self.block_tokens, self.heads)
        return (*(pair if self.axes == "NHD" else pair[::-1]), HEAD_SIZE)

    def blocks(self, seed: int) -> list[int]:
        return np.random.default_rng(seed).permutation(self.num_blocks).tolist()

    def tokens(self, memory: np.ndarray, blocks: list[int]) -> np.ndarray:
        """Return what the blocks hold: (tensor, token, head, word)."""
        words = memory[: self.num_bytes].view(np.uint64)
        rows = words.reshape(LAYERS * 2, self.num_blocks, *self.block_shape()[:2], ROW_BYTES // 8)
        if self.axes == "HND":
            rows = rows.transpose(0, 1, 3, 2, 4)
        return rows[:, blocks].reshape(LAYERS * 2, TOKENS, self.heads, -1)

    def register(self, instance: LLMDataDist, memory: np.ndarray, key: int | None) -> Cache:
        from llm_datadist import BlocksCacheKey, CacheDesc, DataType  # noqa: PLC0415
        from llm_datadist.layouts import dense, heads_of_rank  # noqa: PLC0415

        shape = [self.num_blocks, *self.block_shape()]
        desc = CacheDesc(LAYERS * 2, shape, DataType.DT_BF16)
        each = self.num_bytes // (LAYERS * 2)
        addrs = [work.address(memory) + each * index for index in range(LAYERS * 2)]
        layout = dense(
            self.axes,
            layers=range(LAYERS),
            kv_heads=HEADS,
            heads=heads_of_rank(HEADS, self.tp, self.rank),
            head_size=HEAD_SIZE,
            data_type=DataType.DT_BF16,
            block_tokens=self.block_tokens,
        )
        name = None if key is None else BlocksCacheKey(instance.cluster_id, key)
        manager = instance.cache_manager
        return manager.register_blocks_cache(desc, addrs, name, layout=layout)


CASES: dict[str, tuple[list[Shape], Shape]] = {
    "TP 1 to 2, HND": ([Shape("HND")], Shape("HND", 2, 1)),
    "TP 2 to 1, HND": ([Shape("HND", 2, rank) for rank in range(2)], Shape("HND")),
    "TP 1 to 8, HND": ([Shape("HND")], Shape("HND", 8, 3)),
    "TP 1 to 2, NHD": ([Shape("NHD")], Shape("NHD", 2, 1)),
    "TP 2 to 1, NHD": ([Shape("NHD", 2, rank) for rank in range(2)], Shape("NHD")),
    "TP 1 to 8, NHD": ([Shape("NHD")], Shape("NHD", 8, 3)),
    "blocks 16 to 64, NHD": ([Shape("NHD")], Shape("NHD", block_tokens=64)),
    "blocks 64 to 16, NHD": ([Shape("NHD", block_tokens=64)], Shape("NHD")),
    "blocks 16 to 64, HND": ([Shape("HND")], Shape("HND", block_tokens=64)),
    "blocks 64 to 16, HND": ([Shape("HND", block_tokens=64)], Shape("HND")),
    "HND to NHD": ([Shape("HND")], Shape("NHD")),
}


def owner(pipe: Connection, memory: np.ndarray, *, backend: str) -> None:
    """Body of the owner process: two ranks over one buffer."""
    ranks = [start(cluster_id, backend) for cluster_id in (1, 2)]
    caches: list[tuple[LLMDataDist, Any]] = []

    def register(shapes: list[Shape]) -> None:
        for instance, cache in caches:
            instance.cache_manager.unregister_cache(cache.cache_id)
        caches.clear()
        for rank, shape in enumerate(shapes):
            part = memory[rank * shape.num_bytes :]
            caches.append((ranks[rank], shape.register(ranks[rank], part, 0)))

    pipe.send([instance.listen_address for instance in ranks])
    serve(pipe, memory, register=register)


def owner_auto(pipe: Connection, memory: np.ndarray) -> None:
    owner(pipe, memory, backend="auto")


def owner_tcp(pipe: Connection, memory: np.ndarray) -> None:
    owner(pipe, memory, backend="tcp")


OWNERS: dict[str, tuple[str, Callable[[Connection, np.ndarray], None]]] = {
    "same host": ("auto", owner_auto),
    "tcp": ("tcp", owner_tcp),
}


GOALS = {
    "TP 1 to 2, HND": 0.85,
    "TP 2 to 1, HND": 0.85,
    "TP 1 to 2, NHD": 0.6,
    "TP 2 to 1, NHD": 0.6,
    "TP 1 to 8, NHD": 0.35,
    "blocks 16 to 64, NHD": 0.85,
    "blocks 64 to 16, NHD": 0.85,
    "blocks 16 to 64, HND": 0.85,
    "blocks 64 to 16, HND": 0.85,
    "HND to NHD": 0.3,
}
"""Of the rate of the pull of whole blocks."""


@dataclass(frozen=True)
class Contender:
    """One way to fill the destination.

    Attributes:
        name: Of its row.
        shapes: Caches that the owner has for it.
        call: Fills the destination.
        num_bytes: What it fills.
    """

    name: str
    shapes: list[Shape]
    call: Callable[[], object]
    num_bytes: int


def by_way(pull: Callable[[], object], *, gathered: bool) -> None:
    """Pull by the named way instead of the chosen one."""
    from llm_datadist._engine.transfer import attempt  # noqa: PLC0415

    chosen = attempt.reads_gathered
    attempt.reads_gathered = lambda *_, **__: gathered
    try:
        pull()
    finally:
        attempt.reads_gathered = chosen


class Layouts:
    """The comparison: each case beside a pull of whole blocks, over the same memory and links.

    Args:
        rounds: Turns of each contender.
        only: Part of the names of the cases to run.
        ways: Whether to measure each way to read small pieces beside the chosen one.
        torch: Whether to measure what engines do with torch instead.
    """

    def __init__(self, rounds: int, only: str, *, ways: bool = False, torch: bool = False) -> None:
        self.rounds, self.only = rounds, only
        self._ways, self._torch = ways, torch
        self.rows: list[Row] = []
        self.goals: list[Goal] = []
        self.local = work.buffer(TOTAL)
        self._staged: np.ndarray | None = None
        self._owner: Owner | None = None

    def run(self) -> None:
        for path, (backend, body) in OWNERS.items():
            self._owner = Owner(body, TOTAL)
            self._owner.ask("fill", 5)
            instance = self._linked(backend)
            for name, (sources, wanted) in CASES.items():
                if self.only in f"{path}: {name}":
                    self._compare(f"{path}: {name}", instance, sources, wanted)
            instance.finalize()
            self.close()

    def close(self) -> None:
        if self._owner is not None:
            self._owner.close()
            self._owner = None

    def _linked(self, backend: str) -> LLMDataDist:
        from llm_datadist import LLMClusterInfo  # noqa: PLC0415

        instance = start(3, backend)
        infos = []
        for address in self._owner.hello:
            info = LLMClusterInfo()
            info.append_local_ip_info("127.0.0.1", 0)
            info.append_remote_ip_info(*address)
            infos.append(info)
        instance.link_clusters(infos, 10_000)
        return instance

    def _compare(
        self, name: str, instance: LLMDataDist, sources: list[Shape], wanted: Shape
    ) -> None:
        from llm_datadist import BlocksCacheKey  # noqa: PLC0415

        manager = instance.cache_manager
        src = [shape.blocks(7) for shape in sources]
        dst = wanted.blocks(8)
        self._owner.ask("register", sources)
        cache = wanted.register(instance, self.local, None)
        keys = [BlocksCacheKey(1 + rank) for rank in range(len(sources))]
        pull = partial(manager.pull_resharded, keys, cache, src, dst, TOKENS)
        contenders = [Contender(RESHARDED, sources, pull, wanted.num_bytes)]
        if self._ways and name.startswith("same host"):
            contenders += [
                Contender(way, sources, partial(by_way, pull, gathered=gathered), wanted.num_bytes)
                for way, gathered in WAYS.items()
            ]
        staged = None
        if self._torch and len(sources) == 1 and sources[0].block_tokens == wanted.block_tokens:
            staged = sources[0].register(instance, self._staging(), None)
            contenders.append(self._with_torch(manager, keys[0], staged, sources[0], wanted))
        for contender in contenders:
            self.local[:] = 0
            contender.call()
            used = dst if contender.name != TORCH else wanted.blocks(7)
            self._check(f"{name}, {contender.name}", sources, src, wanted, used)
        equal = Shape("HND")
        local = equal.register(instance, self.local, None)
        same = partial(manager.pull_blocks, keys[0], local, equal.blocks(7), equal.blocks(8))
        contenders.insert(0, Contender(EQUAL, [equal], same, TOTAL))
        self._time(name, contenders)
        for each in (cache, local, staged):
            if each is not None:
                manager.unregister_cache(each.cache_id)

    def _time(self, name: str, contenders: list[Contender]) -> None:
        """Measure the rates, and the CPU time of both processes, which load does not change."""
        rows = [Row(name, each.name, "GB/s") for each in contenders]
        cpu = [Row(f"{name}, CPU of a GiB", each.name, "us") for each in contenders]
        for _ in range(self.rounds):  # the owner has one set of caches at a time
            for row, used, each in zip(rows, cpu, contenders, strict=True):
                self._owner.ask("register", each.shapes)
                each.call()
                begin = self._cpu_seconds()
                row.values.append(timing.once(each.call, each.num_bytes))
                spent = self._cpu_seconds() - begin
                used.values.append(spent / each.num_bytes * (1 << 30) * 1e6)
        self.rows += rows + cpu
        self.goals.append(Goal(name, RESHARDED, EQUAL, GOALS.get(name.partition(": ")[2], 0)))
        for row in rows[2:]:
            wanted = TORCH_GOAL if row.contender == TORCH else BEST_WAY_PART
            self.goals.append(Goal(name, RESHARDED, row.contender, wanted))
        for row in cpu[2:] + cpu[:1]:
            self.goals.append(Goal(row.case, RESHARDED, row.contender, 0))

    def _cpu_seconds(self) -> float:
        return float(turns.cpu_seconds() + self._owner.ask("run", turns.cpu_seconds))

    def _staging(self) -> np.ndarray:
        if self._staged is None:
            self._staged = work.buffer(TOTAL)
        return self._staged

    def _with_torch(
        self,
        manager: CacheManager,
        key: BlocksCacheKey,
        staged: Cache,
        source: Shape,
        wanted: Shape,
    ) -> Contender:
        """Return the pull of whole blocks into memory of their own, and torch's steps."""
        from bench.layouts_torch import Permuting  # noqa: PLC0415

        blocks = source.blocks(7)
        permute = Permuting(self._staging(), source, self.local, wanted, blocks)

        def pull_and_permute() -> None:
            manager.pull_blocks(key, staged, blocks, blocks)
            permute()

        return Contender(TORCH, [source], pull_and_permute, wanted.num_bytes)

    def _check(
        self, name: str, sources: list[Shape], src: list[list[int]], wanted: Shape, dst: list[int]
    ) -> None:
        remote = np.empty(TOTAL, np.uint8)
        work.fill(remote, 5)
        held = [
            shape.tokens(remote[rank * shape.num_bytes :], blocks)
            for rank, (shape, blocks) in enumerate(zip(sources, src, strict=True))
        ]
        whole = np.concatenate(held, axis=2)
        first = wanted.rank * wanted.heads
        expected = whole[:, :, first : first + wanted.heads]
        if not np.array_equal(wanted.tokens(self.local, dst), expected):
            raise RuntimeError(f"{name}: wrong bytes")
