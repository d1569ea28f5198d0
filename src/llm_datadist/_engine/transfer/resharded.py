"""Transfers between one local cache and the caches of several ranks, of any layouts.

Each rank is one request, which `Attempts` carries out like any other: with its own lookup, checks,
checksums, containment of memory faults and retries. The requests run at the same time and have one
deadline.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, wait
from functools import partial
from typing import TYPE_CHECKING, final

from llm_datadist._control.workers import Workers, settle
from llm_datadist._engine.transfer.attempt import Request
from llm_datadist._engine.transfer.resharded_plans import Job, checked_local, checked_ranks
from llm_datadist._engine.transfer.ways import way_of
from llm_datadist._errors import LLMException, invalid, name_request
from llm_datadist._plan import NO_PLAN
from llm_datadist._plan.layouts import RankReport, reason_of

if TYPE_CHECKING:
    from llm_datadist._engine.instance import Instance
    from llm_datadist._engine.link.data_plane import DataPlane
    from llm_datadist._engine.transfer.attempt import Attempts
    from llm_datadist._engine.transfer.resharded_plans import Local, Ranks, ReshardCall
    from llm_datadist._plan.layouts import KvLayout
    from llm_datadist._registry import Resolved

__all__ = ["Resharding"]

_MOST_THREADS = 64


@final
class Resharding:
    """Carries out pull_resharded and push_resharded of one instance. Thread-safe."""

    def __init__(self, instance: Instance, attempts: Attempts) -> None:
        self._registry = instance.registry
        self._links = instance.links
        self._timeout_ns = instance.config.sync_timeout_ms * 1_000_000
        self._attempts = attempts
        self._workers = Workers("llm_datadist-ranks", _MOST_THREADS)

    def close(self) -> None:
        """End the idle threads; running calls end by themselves."""
        self._workers.dismiss()

    def move(self, call: ReshardCall) -> None:
        """See CacheManager.pull_resharded and push_resharded."""
        try:
            self._move(call)
        except LLMException as error:
            if call.trace is not None:  # what no rank's transfer has raised is not named yet
                name_request(error, call.trace.request_id)
            raise

    def _move(self, call: ReshardCall) -> None:
        deadline_ns = time.monotonic_ns() + self._timeout_ns
        local, ranks, found = self._looked_up(call, deadline_ns)
        job = Job(call, local, ranks, [layout for _, layout in found])
        if call.after is not None:
            call.after.wait(call.operation, deadline_ns)

        def request(rank: int) -> Request:
            return Request(
                call.operation,
                call.keys[rank],
                local.cache,
                lambda now: job.plan(rank, now),
                write=call.write,
                deadline_ns=deadline_ns,
                trace=call.trace,
                reshards=not job.moves_whole_blocks(rank),
            )

        errors = self._errors([request(rank) for rank in job.parts])
        failed = {
            rank: error for rank, error in zip(job.parts, errors, strict=True) if error is not None
        }
        if failed:
            raise ranks.failure(failed) from next(iter(failed.values()))

    def explain(self, call: ReshardCall) -> tuple[RankReport, ...]:
        """See CacheManager.explain_resharded."""
        local, ranks, found = self._looked_up(call, time.monotonic_ns() + self._timeout_ns)
        job = Job(call, local, ranks, [layout for _, layout in found])
        return tuple(self._report(call, job, rank, found[rank][0]) for rank in job.parts)

    def _report(self, call: ReshardCall, job: Job, rank: int, found: Resolved) -> RankReport:
        plan = job.plan(rank, found)
        data: DataPlane = self._links.get(call.keys[rank].cluster_id, call.operation).data
        sides = job.common[rank], job.common[-1]
        src, dst = reversed(sides) if call.write else sides
        parts = tuple(job.parts[rank])
        whole = job.moves_whole_blocks(rank)
        way = way_of(data, plan, write=call.write, whole=whole)
        return RankReport(
            rank,
            call.keys[rank].cluster_id,
            data.channel.name,
            parts,
            plan.total_bytes,
            len(plan.length),
            way.expected_rate,
            "whole blocks of equal layouts" if whole else reason_of(src, dst, parts[0]),
            way.name,
            way.why,
        )

    def _looked_up(
        self, call: ReshardCall, deadline_ns: int
    ) -> tuple[Local, Ranks, list[tuple[Resolved, KvLayout]]]:
        """Check a call, then return its two sides, and the peers' caches as they are now."""
        local = checked_local(call, self._registry.find(call.operation, call.cache))
        ranks = checked_ranks(call)
        caches = []
        for rank, key in enumerate(ranks.keys):
            try:
                found = self._attempts.look_up(
                    Request(
                        call.operation,
                        key,
                        local.cache,
                        lambda _: NO_PLAN,
                        deadline_ns=deadline_ns,
                        trace=call.trace,
                    )
                )
                layout = _layout_of(call, rank, found)
            except LLMException as error:
                raise ranks.failure({rank: error}) from error
            caches.append((found, layout))
        return local, ranks, caches

    def _errors(self, requests: list[Request]) -> list[LLMException | None]:
        """Run requests at the same time, the first on this thread; return what each raised.

        None of them runs any more when this returns or raises, whatever it raises.
        """
        if not requests:
            return []
        first, *others = requests
        futures: list[Future[LLMException | None]] = [Future() for _ in others]
        try:
            for request, future in zip(others, futures, strict=True):
                self._workers.enqueue(future, partial(self._error, request))
            error = self._error(first)
            wait(futures)
        except BaseException:
            settle(futures)
            raise
        return [error, *map(self._outcome, others, futures)]

    def _outcome(
        self, request: Request, future: Future[LLMException | None]
    ) -> LLMException | None:
        try:
            return future.result()
        except LLMException:  # there is no thread for it
            return self._error(request)

    def _error(self, request: Request) -> LLMException | None:
        try:
            self._attempts.run(request)
        except LLMException as error:
            return error
        return None


def _layout_of(call: ReshardCall, rank: int, found: Resolved) -> KvLayout:
    """Return the layout of a peer's cache, which is the expected one if the call has any."""
    layout, cluster_id = found.cache.kv_layout, call.keys[rank].cluster_id
    if layout is None:
        raise invalid(
            call.operation,
            f"the peer registered cache {found.cache.cache_id} without a layout",
            "give register_blocks_cache (allocate_blocks_cache) a layout",
            cluster_id=cluster_id,
        )
    if call.layouts is not None and layout != call.layouts[rank]:
        raise invalid(
            call.operation,
            f"the peer registered cache {found.cache.cache_id} with the layout {layout}, "
            f"src_layouts[{rank}] is {call.layouts[rank]}",
            "give the layout that the peer has",
            cluster_id=cluster_id,
        )
    return layout
