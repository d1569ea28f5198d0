"""The consumer's side of a worker: fetches requests' blocks on threads of its own.

A load leases the request's key at the producer, pulls its blocks in the order of the tokens,
reports them, and releases the lease. Whatever goes wrong, the blocks from the first one on whose
bytes are not known to be right are reported as failed, and vLLM computes them itself; the call that
failed writes none of them any more.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llm_datadist import BlocksCacheKey, LLMException, LLMStatusCode
from llm_datadist.integrations.vllm.worker.producer_links import (
    Incompatible,
    ProducerLinks,
    Unreachable,
)
from llm_datadist.integrations.vllm.worker.pull_progress import PullProgress, num_before_faults

if TYPE_CHECKING:
    from llm_datadist.integrations.vllm.kv_transfer_params import Offer, RankAddress
    from llm_datadist.integrations.vllm.step_orders import Load
    from llm_datadist.integrations.vllm.worker.instance import WorkerInstance
    from llm_datadist.integrations.vllm.worker.wakeup import Changes
    from llm_datadist.leases import Lease

__all__ = ["PullConsumer", "Loaded"]

logger = logging.getLogger("llm_datadist.vllm")

_LINK_GONE = {LLMStatusCode.LLM_NOT_YET_LINK, LLMStatusCode.LLM_LINK_FAILED}


@dataclass(frozen=True, slots=True)
class Loaded:
    """Loads that have ended.

    Attributes:
        request_ids: All of them.
        failed_request_ids: Those of which blocks are missing.
        failed_blocks: The missing ones, own numbers.
    """

    request_ids: set[str] = field(default_factory=set)
    failed_request_ids: set[str] = field(default_factory=set)
    failed_blocks: set[int] = field(default_factory=set)


class PullConsumer:
    """Loads and dismisses. Calls of the model's thread never wait for a transfer.

    Args:
        worker: The worker's instance.
        changes: Told when there is something in `take_loaded`.
    """

    def __init__(self, worker: WorkerInstance, changes: Changes) -> None:
        self._worker = worker
        self._changes = changes
        self._producers = ProducerLinks(worker)
        self._lock = threading.Lock()
        self._pending: dict[str, threading.Event] = {}
        self._ended: dict[str, set[int]] = {}
        self._threads = ThreadPoolExecutor(
            worker.options.concurrent_loads, "llm_datadist-vllm-load"
        )

    def load(self, order: Load) -> None:
        """Begin a load."""
        abandoned = threading.Event()
        with self._lock:
            self._pending[order.request_id] = abandoned
        self._threads.submit(self._run, order, abandoned)
        self._changes.notify()

    def dismiss(self, offer: Offer) -> None:
        """Let the producer have the blocks of an offer back, unread."""
        self._threads.submit(self._run_dismiss, offer)

    def abandon(self, request_id: str) -> None:
        """The load's request is gone; end it soon. It is reported all the same."""
        with self._lock:
            abandoned = self._pending.get(request_id)
        if abandoned is not None:
            abandoned.set()

    def take_loaded(self) -> Loaded:
        """The loads that have ended since the last call."""
        with self._lock:
            ended, self._ended = self._ended, {}
        return Loaded(
            set(ended),
            {request_id for request_id, failed in ended.items() if failed},
            set().union(*ended.values()),
        )

    @property
    def is_waiting(self) -> bool:
        """Whether loads are under way."""
        return bool(self._pending)

    def close(self) -> None:
        """End all loads; idempotent. With the instance closed before, they fail at once."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _run(self, order: Load, abandoned: threading.Event) -> None:
        failed = {block for blocks in order.dst_blocks for block in blocks}
        try:
            failed = self._load(order, abandoned)
        except Exception:
            logger.exception("request %s: its load failed", order.request_id)
        finally:
            self._report(order, abandoned, failed)

    def _report(self, order: Load, abandoned: threading.Event, failed: set[int]) -> None:
        """Let the scheduler's side know how a load has ended; the first word counts."""
        with self._lock:
            if self._pending.get(order.request_id) is not abandoned:
                return
            del self._pending[order.request_id]
            self._ended[order.request_id] = failed | set(order.unavailable)
        self._changes.notify()

    def _run_dismiss(self, offer: Offer) -> None:
        try:
            rank = self._rank(offer)
            self._producers.link(rank)
            with self._lease(offer, rank):
                pass
        except (LLMException, Incompatible, Unreachable) as error:
            logger.info(
                "request %s of the producer could not be dismissed, its blocks are held until "
                "hold_ms is over: %s",
                offer.remote_request_id,
                str(error),
            )
        except Exception:
            logger.exception(
                "dismissing request %s of the producer failed", offer.remote_request_id
            )

    def _load(self, order: Load, abandoned: threading.Event) -> set[int]:
        """Load, and return the own blocks that are not right."""
        left = PullProgress(order, self._worker.layout)
        deadline = time.monotonic() + self._worker.options.transfer_timeout_ms / 1000
        started = time.perf_counter()
        rank = self._rank(order.offer)
        try:
            for attempt in range(2):
                self._producers.link(rank)
                try:
                    self._pull_all(left, rank, abandoned, deadline)
                    break
                except LLMException as error:
                    if attempt or error.status_code not in _LINK_GONE:
                        raise
                    self._producers.drop(rank)
        except (LLMException, Incompatible, Unreachable) as error:
            if getattr(error, "status_code", None) == LLMStatusCode.LLM_TIMEOUT:
                self._producers.mark_silent(rank, str(error))
            logger.warning(
                "request %s: %d of its blocks cannot be fetched and will be computed here: %s",
                order.request_id,
                len(left.missing_blocks()),
                str(error),
            )
            return left.missing_blocks()
        if not left.missing_blocks():
            logger.debug(
                "request %s: fetched %d bytes in %.1f ms",
                order.request_id,
                left.total_bytes,
                (time.perf_counter() - started) * 1e3,
            )
        return left.missing_blocks()

    def _pull_all(
        self, left: PullProgress, rank: RankAddress, abandoned: threading.Event, deadline: float
    ) -> None:
        with self._lease(left.order.offer, rank) as lease:
            while left.pulls and not abandoned.is_set():
                if time.monotonic() > deadline:
                    raise Unreachable(
                        f"transfer_timeout_ms {self._worker.options.transfer_timeout_ms} is over"
                    )
                self._pull(left, rank)
                if left.pulls:
                    lease.renew()
            if not left.pulls:
                self._report(left.order, abandoned, set())  # before the producer is told

    def _pull(self, left: PullProgress, rank: RankAddress) -> None:
        part, src_blocks, dst_blocks = left.pulls[0]
        try:
            self._worker.cache_manager.pull_blocks(
                BlocksCacheKey(rank.cluster_id, left.order.offer.key + part),
                self._worker.local_caches[part],
                src_blocks,
                dst_blocks,
            )
        except LLMException as error:
            whole = num_before_faults(src_blocks, dst_blocks, rank.cluster_id, error)
            if whole:
                # Blocks before the first bad one are worth having: vLLM keeps a prefix.
                left.split_first(whole)
                self._pull(left, rank)
            raise
        left.pulls.pop(0)

    def _lease(self, offer: Offer, rank: RankAddress) -> Lease:
        blocks = offer.blocks[self._worker.layout.parts[0].group]
        return self._worker.cache_manager.lease(
            BlocksCacheKey(rank.cluster_id, offer.key),
            sorted(set(blocks)),
            ttl_ms=self._worker.options.lease_ms,
        )

    def _rank(self, offer: Offer) -> RankAddress:
        return offer.ranks[self._worker.layout.rank]
