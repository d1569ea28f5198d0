"""Consumer in pull mode: fetches requests' blocks on threads of its own.

A load leases the request's key at each of its sources, the producer's workers that hold its part;
pulls its blocks in the order of the tokens; reports the request; and releases the leases. If that
fails, the blocks from the first incomplete one on are reported as failed, and vLLM recomputes them;
no byte of a failed pull lands afterwards.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from llm_datadist import BlocksCacheKey, LLMException, LLMStatusCode
from llm_datadist.integrations.vllm.request_traces import trace_of, transfer_id
from llm_datadist.integrations.vllm.worker.producer_links import (
    LINK_GONE,
    Incompatible,
    Late,
    ProducerLinks,
    Unreachable,
    reason_of,
)
from llm_datadist.integrations.vllm.worker.pull_progress import PullProgress
from llm_datadist.integrations.vllm.worker.sources import SourceFinder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from llm_datadist.integrations.vllm.kv_transfer_params import Offer, RankAddress
    from llm_datadist.integrations.vllm.step_orders import Load
    from llm_datadist.integrations.vllm.worker.instance import WorkerInstance
    from llm_datadist.integrations.vllm.worker.reports import Reports
    from llm_datadist.integrations.vllm.worker.sources import Sources
    from llm_datadist.leases import Lease

logger: logging.Logger = logging.getLogger("llm_datadist.vllm")


class PullConsumer:
    """Loads requests and reports them as loaded. Calls never wait for a transfer.

    Args:
        worker: The worker's instance.
        reports: For requests whose loads have ended.
    """

    def __init__(self, worker: WorkerInstance, reports: Reports) -> None:
        self._worker = worker
        self._reports = reports
        self._links = ProducerLinks(worker)
        self._sources = SourceFinder(worker)
        self._lock = threading.Lock()
        self._pending: dict[str, threading.Event] = {}
        self._pool = ThreadPoolExecutor(worker.options.concurrent_loads, "llm_datadist-vllm-load")

    def load(self, order: Load) -> None:
        """Start a load."""
        abandoned = threading.Event()
        with self._lock:
            self._pending[order.request_id] = abandoned
        self._pool.submit(self._run, order, abandoned, time.monotonic())
        self._reports.note_change()

    def dismiss(self, offer: Offer) -> None:
        """Give the blocks of an offer back to the producer, unread."""
        self._pool.submit(self._run_dismiss, offer)

    def abandon(self, request_id: str) -> None:
        """End the load of an aborted request soon; it is reported all the same."""
        with self._lock:
            abandoned = self._pending.get(request_id)
        if abandoned is not None:
            abandoned.set()

    @property
    def is_waiting(self) -> bool:
        """Whether loads are running."""
        return bool(self._pending)

    def close(self) -> None:
        """End and report all loads; idempotent. Close the instance first, so that they fail."""
        self._pool.shutdown(wait=True)

    def _run(self, order: Load, abandoned: threading.Event, began: float) -> None:
        failed = {block for blocks in order.dst_blocks for block in blocks}
        reason = "error"
        try:
            with trace_of(order.trace_headers):
                failed, reason = self._load(order, abandoned, began)
        except Exception:
            logger.exception("request %s: its load failed", order.request_id)
        finally:
            self._report(order, abandoned, failed, reason)

    def _report(
        self, order: Load, abandoned: threading.Event, failed: Iterable[int], reason: str = ""
    ) -> None:
        """Report how a load has ended, and count it; only the first report of a load counts."""
        with self._lock:
            if self._pending.get(order.request_id) is not abandoned:
                return
            del self._pending[order.request_id]
        missing = {*failed, *order.unavailable}
        if missing and not abandoned.is_set():
            self._reports.counts.add("requests_recomputed", reason or "unavailable")
        self._reports.add_loaded(order.request_id, missing)

    def _run_dismiss(self, offer: Offer) -> None:
        try:
            for rank, source in self._sources_of(offer):
                self._links.link(rank, source.expected)
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

    def _load(self, order: Load, abandoned: threading.Event, began: float) -> tuple[set[int], str]:
        """Load a request, and return the local blocks that are not complete, and why."""
        progress, reason = PullProgress(order, self._worker.layout, began), ""
        try:
            self._load_from(self._sources_of(order.offer), progress, abandoned)
        except (LLMException, Incompatible, Unreachable) as error:
            reason = reason_of(error)
            logger.warning(
                "request %s: %d of its blocks cannot be fetched and will be recomputed: %s",
                order.request_id,
                len(progress.missing_blocks()),
                str(error),
            )
        missing = progress.missing_blocks()
        if not missing:
            logger.debug(
                "request %s: fetched %d bytes in %.1f ms",
                order.request_id,
                progress.total_bytes,
                (time.monotonic() - began) * 1e3,
            )
        return missing, reason

    def _load_from(
        self, sources: Sources, progress: PullProgress, abandoned: threading.Event
    ) -> None:
        """Link and pull; links that turn out to be broken are made again once."""
        deadline = time.monotonic() + self._worker.options.transfer_timeout_ms / 1000
        for attempt in range(2):
            for rank, source in sources:
                self._links.link(rank, source.expected)
            try:
                self._pull_all(progress, sources, abandoned, deadline)
                return
            except LLMException as error:
                status = error.status_code
                self._reports.counts.add("fetch_errors", self._path(sources), status.name)
                for rank in _concerned(sources, error):
                    if not attempt and status in LINK_GONE:
                        self._links.drop(rank)
                    elif status == LLMStatusCode.LLM_TIMEOUT:
                        self._links.mark_silent(rank, str(error))
                if attempt or status not in LINK_GONE:
                    raise

    def _pull_all(
        self,
        progress: PullProgress,
        sources: Sources,
        abandoned: threading.Event,
        deadline: float,
    ) -> None:
        with self._leases(progress.order.offer, sources) as leases:
            while progress.pulls and not abandoned.is_set():
                if time.monotonic() > deadline:
                    raise Late(
                        f"transfer_timeout_ms {self._worker.options.transfer_timeout_ms} is over"
                    )
                self._pull(progress, sources)
                if progress.pulls:
                    for lease in leases:
                        lease.renew()
            if not progress.pulls:
                if progress.total_bytes:  # the offer had some of what is needed
                    self._count_fetched(progress, self._path(sources))
                self._report(progress.order, abandoned, ())  # vLLM need not wait for the release

    def _pull(self, progress: PullProgress, sources: Sources) -> None:
        """Make the next pull; if it fails, pull the blocks before the first memory fault."""
        pull, key = progress.pulls[0], progress.order.offer.key
        local_cache = self._worker.local_caches[pull.part]
        cluster_ids = [rank.cluster_id for rank, _ in sources]
        keys = [BlocksCacheKey(cluster_id, key + pull.part) for cluster_id in cluster_ids]
        manager, request_id = self._worker.cache_manager, transfer_id(progress.order.request_id)
        try:
            if not sources[0][1].layouts:
                manager.pull_blocks(
                    keys[0], local_cache, pull.src_blocks, pull.dst_blocks, request_id=request_id
                )
            else:
                manager.pull_resharded(
                    keys,
                    local_cache,
                    [pull.src_blocks] * len(keys),
                    pull.dst_blocks,
                    pull.num_tokens,
                    src_offset=pull.src_offset,
                    src_layouts=[source.layouts[pull.part] for _, source in sources],
                    request_id=request_id,
                )
        except LLMException as error:
            num_good = progress.num_before_faults(cluster_ids, error)
            if num_good:
                progress.split_first(num_good)
                self._pull(progress, sources)
            raise
        progress.pulls.pop(0)

    def _count_fetched(self, progress: PullProgress, path: str) -> None:
        counts, seconds = self._reports.counts, time.monotonic() - progress.began
        counts.add("requests_fetched", path)
        counts.add("fetched_bytes", path, by=progress.total_bytes)
        counts.observe("fetch_seconds", path, value=seconds)

    def _path(self, sources: Sources) -> str:
        return self._worker.path_to(sources[0][0].cluster_id)

    def _sources_of(self, offer: Offer) -> Sources:
        return self._sources.find(offer.ranks, offer.block_sizes)

    @contextlib.contextmanager
    def _leases(self, offer: Offer, sources: Sources) -> Iterator[list[Lease]]:
        with contextlib.ExitStack() as leases:
            yield [leases.enter_context(self._lease(offer, rank)) for rank, _ in sources]

    @contextlib.contextmanager
    def _lease(self, offer: Offer, rank: RankAddress) -> Iterator[Lease]:
        blocks = offer.blocks[self._worker.layout.parts[0].group]
        lease = self._worker.cache_manager.lease(
            BlocksCacheKey(rank.cluster_id, offer.key),
            sorted(set(blocks)),
            ttl_ms=self._worker.options.lease_ms,
        )
        with lease as held:
            self._reports.counts.add("leases_held")
            try:
                yield held
            finally:
                self._reports.counts.add("leases_held", by=-1)


def _concerned(sources: Sources, error: LLMException) -> list[RankAddress]:
    """Return the sources that an error is about: all, unless it names one."""
    ranks = [rank for rank, _ in sources]
    return [rank for rank in ranks if rank.cluster_id == error.cluster_id] or ranks
