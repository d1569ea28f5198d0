"""Replays requests: each pulls the blocks that the decode process's cache misses."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llm_datadist.cli.bench import work
from llm_datadist.cli.bench.trace.block_cache import BlockCache
from llm_datadist.cli.bench.work import Case

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from llm_datadist.cli.bench.datadist import Datadist
    from llm_datadist.cli.bench.presets import Preset
    from llm_datadist.cli.bench.trace.requests import Request

__all__ = ["Replay", "Served", "Shape"]

_SEED = 5
_LONGEST_NAP_S = 0.2


@dataclass(frozen=True)
class Shape:
    """Caches of both ends, in blocks of the trace, each of which is several blocks of the model.

    Attributes:
        preset: The model.
        block_tokens: Tokens of a block of the trace, a multiple of those of the model's blocks.
        capacity: Blocks of the trace in each cache.
    """

    preset: Preset
    block_tokens: int
    capacity: int

    @property
    def per_block(self) -> int:
        """Blocks of the model in a block of the trace."""
        return self.block_tokens // self.preset.block_tokens

    @property
    def block_bytes(self) -> int:
        """Bytes of a block of the trace in all tensors."""
        return self.preset.token_bytes * self.block_tokens

    def case(self) -> Case:
        """Return both caches as a case."""
        total = self.capacity * self.block_bytes
        return Case("trace", self.preset.block_bytes, total, tensors=self.preset.tensors)


@dataclass(frozen=True)
class Served:
    """What one request took; seconds since the start of the replay.

    Attributes:
        due_s: When it arrived.
        begun_s, pulled_s: Begin and end of its pull; equal without one.
        done_s: When its last block was there.
        blocks, hits: Its blocks, and how many of them were there or on their way.
    """

    due_s: float
    begun_s: float
    pulled_s: float
    done_s: float
    blocks: int
    hits: int


class Replay:
    """One replay. The prefill process has every block that a request may ask for.

    Args:
        contender: Both ends, with room for the case of the shape.
        shape: Of the caches.
        parallel: Requests at once.
    """

    def __init__(self, contender: Datadist, shape: Shape, parallel: int) -> None:
        self._contender, self._shape, self._parallel = contender, shape, parallel
        self._case = shape.case()
        src, dst = self._case.blocks()
        used = shape.capacity * shape.per_block
        self._src = src[:used].reshape(shape.capacity, shape.per_block)
        self._dst = dst[:used].reshape(shape.capacity, shape.per_block)
        self._cache = BlockCache(shape.capacity)
        self._start = 0.0

    def prepare(self) -> None:
        """Fill the prefill process's cache, register both, and check a pull of all blocks."""
        self._contender.check_read(self._case, _SEED)

    def run(
        self, requests: Sequence[Request], speed: float, report: Callable[[int], None]
    ) -> list[Served]:
        """Replay the requests at their times, and check every block that the cache has in the end.

        Args:
            requests: In order of time.
            speed: How much faster.
            report: Called with the number of requests that are done, now and then.

        Raises:
            RuntimeError: A pull failed, or a byte is wrong.
        """
        self._start = time.monotonic()
        first_ms = requests[0].timestamp
        jobs: list[Future[Served]] = []
        pool = ThreadPoolExecutor(self._parallel)
        try:
            for request in requests:
                due_s = (request.timestamp - first_ms) / 1000 / speed
                self._nap_until(due_s, jobs, report)
                jobs.append(pool.submit(self._serve, request, due_s))
            while not all(job.done() for job in jobs):
                self._nap_until(self._now() + _LONGEST_NAP_S, jobs, report)
            served = [job.result() for job in jobs]
        finally:
            self._cache.abort()
            pool.shutdown(cancel_futures=True)
        self._check()
        return served

    def _now(self) -> float:
        return time.monotonic() - self._start

    def _nap_until(
        self, due_s: float, jobs: Sequence[Future[Served]], report: Callable[[int], None]
    ) -> None:
        """Wait for a time, and report; raise the error of a request that failed meanwhile."""
        while (left_s := due_s - self._now()) > 0:
            time.sleep(min(left_s, _LONGEST_NAP_S))
            self._raise_failure(jobs)
            report(sum(job.done() for job in jobs))

    @staticmethod
    def _raise_failure(jobs: Sequence[Future[Served]]) -> None:
        for job in jobs:
            if job.done():
                job.result()

    def _serve(self, request: Request, due_s: float) -> Served:
        try:
            admission = self._cache.admit(request.hash_ids)
            begun_s = self._now()
            if admission.missing:
                hashes = np.fromiter(admission.missing, np.int64)
                slots = np.fromiter(admission.missing.values(), np.int64)
                src = self._src[hashes % self._shape.capacity].ravel().tolist()
                self._contender.pull(src, self._dst[slots].ravel().tolist())
                self._cache.arrived(admission.missing)
            pulled_s = self._now()
            self._cache.wait_for(admission.present)
            done_s = self._now()
            self._cache.release(admission)
        except BaseException:
            self._cache.abort()
            raise
        blocks = len(admission.present) + len(admission.missing)
        return Served(due_s, begun_s, pulled_s, done_s, blocks, len(admission.present))

    def _check(self) -> None:
        """Compare every byte of the blocks that the cache has."""
        held = self._cache.slots()
        slots = np.fromiter(held.values(), np.int64)
        hashes = np.fromiter(held, np.int64)
        blocks = self._dst[slots].ravel()
        sources = self._src[hashes % self._shape.capacity].ravel()
        if not work.holds(self._contender.local, self._case, blocks, sources, _SEED):
            raise RuntimeError("trace: wrong bytes in the cache of the decode process")
