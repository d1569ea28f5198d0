"""Rates over threads, links and descriptors of a call: curves, in which a cliff is seen."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from bench.timing import Goal
from llm_datadist.cli.bench import hosts, processes, work
from llm_datadist.cli.bench.contender import serve
from llm_datadist.cli.bench.datadist import LOCAL_ID, register, start
from llm_datadist.cli.bench.timing import Row

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from llm_datadist import BlocksCacheKey, Cache, LLMDataDist

_FIRST_OWNER = 100
_SECONDS = 1.0
_BLOCK = 32 << 10
_BLOCKS_OF_A_CALL = 32
_THREADS = (1, 2, 4, 8, 16, 64)
_LINKS = 16
_CALLS = (1, 16, 256, 4096)
_BUFFER = 256 * work.MIB
_FEW, _MANY = "4 threads, 1 link", f"64 threads, {_LINKS} links"


class Scale:
    """One instance that pulls from up to 16 instances of another process, which share memory."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.rows: list[Row] = []
        self.goals: list[Goal] = []
        self._local = work.buffer(_BUFFER)

    def run(self) -> None:
        for path, backend in (("same host", "auto"), ("tcp", "tcp")):
            process, pipe = processes.start(
                hosts.executable(hosts.LOCAL), owners, backend, _LINKS, daemon=True
            )
            addresses = processes.receive(process, pipe)
            instance = start(LOCAL_ID, backend)
            _link(instance, addresses)
            self._measure(path, instance)
            instance.finalize()
            process.kill()
            process.join()

    def close(self) -> None:
        pass

    def _measure(self, path: str, instance: LLMDataDist) -> None:
        cache = _register(instance, self._local, _BLOCK)
        _touch(instance, cache, 0)
        shapes = [(threads, 1) for threads in _THREADS] + [(4, _LINKS), (16, _LINKS), (64, _LINKS)]
        rows = {shape: Row(path, _name(*shape), "GB/s") for shape in shapes}
        for _ in range(self.rounds):
            for threads, links in shapes:
                rate = rate_of(instance, cache, threads, links)
                rows[threads, links].values.append(rate)
        self.rows += rows.values()
        self.goals.append(Goal(path, _MANY, _FEW, 0.8))
        self.rows += [
            Row(
                f"{path}: 4 KiB blocks",
                f"{count:,} descriptors a call",
                "GB/s",
                [self._small_blocks(instance, count) for _ in range(self.rounds)],
            )
            for count in _CALLS
        ]

    def _small_blocks(self, instance: LLMDataDist, count: int) -> float:
        cache = _register(instance, self._local, 4096)
        try:
            return rate_of(instance, cache, 1, 1, blocks_of_a_call=count, model_id=1)
        finally:
            instance.cache_manager.unregister_cache(cache.cache_id)


def _name(threads: int, links: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}, {links} link{'s' * (links > 1)}"


def rate_of(
    instance: LLMDataDist,
    cache: Cache,
    threads: int,
    links: int,
    *,
    blocks_of_a_call: int = _BLOCKS_OF_A_CALL,
    model_id: int = 0,
) -> float:
    """Return GB/s of threads that pull at the same time; thread i uses link i modulo `links`."""
    from llm_datadist import BlocksCacheKey  # noqa: PLC0415

    num_blocks, block_bytes = cache.cache_desc.shape
    ends = time.perf_counter() + _SECONDS
    pulled = [0] * threads
    go = threading.Barrier(threads)

    share = num_blocks // threads // blocks_of_a_call * blocks_of_a_call
    remote = np.random.default_rng(1).permutation(num_blocks)

    def pull(thread: int) -> None:
        """Pull blocks, again and again, to a part of the cache that no other thread writes."""
        key = BlocksCacheKey(_FIRST_OWNER + thread % links, model_id)
        manager = instance.cache_manager
        own = np.arange(thread * share, (thread + 1) * share)
        at = 0
        go.wait()
        while time.perf_counter() < ends:
            part = own[at : at + blocks_of_a_call]
            manager.pull_blocks(key, cache, remote[part], part)
            pulled[thread] += len(part)
            at = (at + blocks_of_a_call) % share

    workers = [threading.Thread(target=pull, args=(number,)) for number in range(threads)]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(pulled) * block_bytes / (time.perf_counter() - began) / 1e9


def owners(pipe: Connection, backend: str, count: int) -> None:
    """Body of the other process: instances with caches over one buffer."""
    from llm_datadist import BlocksCacheKey  # noqa: PLC0415

    memory = work.buffer(_BUFFER)
    instances = [start(_FIRST_OWNER + number, backend) for number in range(count)]
    for number, instance in enumerate(instances):
        for model_id, block in enumerate((_BLOCK, 4096)):
            key = BlocksCacheKey(_FIRST_OWNER + number, model_id)
            _register(instance, memory, block, key)
    pipe.send([instance.listen_address for instance in instances])
    serve(pipe, memory)


def _touch(instance: LLMDataDist, cache: Cache, model_id: int) -> None:
    """Move every byte once, since a virtual machine may get its memory at the first access."""
    from llm_datadist import BlocksCacheKey  # noqa: PLC0415

    every = range(cache.cache_desc.shape[0])
    for _ in range(2):
        instance.cache_manager.pull_blocks(
            BlocksCacheKey(_FIRST_OWNER, model_id), cache, every, every
        )


def _register(
    instance: LLMDataDist, memory: work.Memory, block: int, key: BlocksCacheKey | None = None
) -> Cache:
    return register(instance, memory, work.Case("scale", block, len(memory)), key)


def _link(instance: LLMDataDist, addresses: list[tuple[str, int]]) -> None:
    for address in addresses:
        instance.link_peer(address)
