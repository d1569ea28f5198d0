"""Producer in pull mode: keeps the blocks of finished prompts until consumers have fetched them.

Each request's blocks are published under a key of its own, which only its offer names. A consumer
leases the key, pulls and releases; one that divides heads or layers among more workers does so with
several of them. When all of them have, or a lease is lost, or not all have come within hold_ms, the
key is withdrawn, and *after that* vLLM gets the blocks back. Withdrawing is final: a consumer that
comes too late gets an error, never another request's bytes.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llm_datadist import LLMException
from llm_datadist.integrations.vllm.worker.readers import Readers

if TYPE_CHECKING:
    from llm_datadist import Cache
    from llm_datadist.integrations.vllm.worker.instance import WorkerInstance
    from llm_datadist.integrations.vllm.worker.reports import Reports
    from llm_datadist.leases import LeaseEnd

logger: logging.Logger = logging.getLogger("llm_datadist.vllm")

_RETRY_S = 1.0


@dataclass(slots=True)
class _Published:
    """A request whose blocks are published.

    Attributes:
        request_id: Of this engine.
        caches: Its registrations, one for each part of the layout.
        deadline: When vLLM gets the blocks back unless they are leased; None before the offer.
        released: Consumers' workers that have released their leases.
        is_counted: Whether `is_fetched` considers all of `released`.
        is_fetched: Whether all of them have come, or a lease was lost.
        reason: Why vLLM gets the blocks back, for the label of a metric.
    """

    request_id: str
    caches: list[Cache]
    deadline: float | None = None
    released: set[int] = field(default_factory=set)
    is_counted: bool = True
    is_fetched: bool = False
    reason: str = "expired"


class PullProducer:
    """Publishes requests and reports them as sent. Calls never wait for a transfer.

    Args:
        worker: The worker's instance.
        reports: For requests whose blocks vLLM may reuse.
    """

    def __init__(self, worker: WorkerInstance, reports: Reports) -> None:
        self._worker = worker
        self._reports = reports
        self._hold_s = worker.options.hold_ms / 1000
        self._wake = threading.Condition()
        self._published: dict[str, _Published] = {}
        self._by_cache: dict[int, _Published] = {}
        self._readers = Readers(worker)
        self._closed = False
        worker.cache_manager.on_lease_end(self._lease_ended)
        self._thread = threading.Thread(
            target=self._run, name="llm_datadist-vllm-withdraw", daemon=True
        )
        self._thread.start()

    def publish(self, request_id: str, key: int) -> None:
        """Publish the KV memory under a request's key; if that fails, pulls of its offer fail."""
        try:
            caches = self._worker.publish(key)
        except LLMException as error:
            logger.error("request %s: its blocks cannot be offered: %s", request_id, str(error))
            return
        with self._wake:
            published = self._published[request_id] = _Published(request_id, caches)
            self._by_cache[caches[0].cache_id] = published

    def hold(self, request_id: str) -> None:
        """Keep the blocks of an offered request until they are fetched or the hold time is over."""
        with self._wake:
            published = self._published.get(request_id)
            if published is not None:
                published.deadline = time.monotonic() + self._hold_s
                self._wake.notify_all()
        if published is None:
            self._reports.add_sent(request_id)
        else:
            self._reports.counts.add("requests_held")
            self._reports.note_change()

    def withdraw(self, request_id: str) -> None:
        """Withdraw a request that is not offered."""
        with self._wake:
            published = self._published.pop(request_id, None)
            if published is not None:
                del self._by_cache[published.caches[0].cache_id]
        if published is not None:
            self._worker.withdraw(published.caches)

    @property
    def is_waiting(self) -> bool:
        """Whether vLLM waits for blocks."""
        return any(each.deadline is not None for each in list(self._published.values()))

    def close(self) -> None:
        """Stop, and report what is held; idempotent. Close the instance before vLLM takes it."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        self._thread.join()
        with self._wake:
            left, self._published = self._published, {}
            self._by_cache.clear()
        for published in left.values():
            if published.deadline is not None:
                self._reports.count_released("closed")
                self._reports.add_sent(published.request_id)

    def _lease_ended(self, end: LeaseEnd) -> None:
        with self._wake:
            published = self._by_cache.get(end.cache_id)
            if published is None:
                return
            if end.reason == "released":
                published.released.add(end.cluster_id)
                published.is_counted = False
            else:
                published.is_fetched, published.reason = True, "lease_lost"
                logger.warning(
                    "request %s: the lease of cluster %d ended: %s; its blocks are taken back",
                    published.request_id,
                    end.cluster_id,
                    end.reason,
                )
            self._wake.notify_all()

    def _run(self) -> None:
        while True:
            with self._wake:
                due = self._due()
                while not due and not self._closed:
                    self._wake.wait(self._until_next())
                    due = self._due()
                if self._closed:
                    return
            for published in due:
                try:
                    self._count(published)
                    if self._is_due(published):
                        self._give_back(published)
                except Exception:
                    # vLLM must not reuse blocks whose key may be alive: peers would read wrong
                    # bytes.
                    logger.exception(
                        "request %s: its key is not withdrawn yet", published.request_id
                    )
                    published.deadline = time.monotonic() + _RETRY_S
                    published.is_fetched = False

    def _due(self) -> list[_Published]:
        return [
            each
            for each in self._published.values()
            if each.deadline is not None and (not each.is_counted or self._is_due(each))
        ]

    def _is_due(self, published: _Published) -> bool:
        """Whether vLLM gets the blocks of an offered request back."""
        deadline = published.deadline
        return deadline is not None and (published.is_fetched or deadline <= time.monotonic())

    def _count(self, published: _Published) -> None:
        """Find out whether all workers that fetch a request have released it."""
        with self._wake:
            released, published.is_counted = set(published.released), True
        if released and self._readers.have_all(released):
            published.is_fetched, published.reason = True, "fetched"

    def _until_next(self) -> float | None:
        deadlines = [
            each.deadline for each in self._published.values() if each.deadline is not None
        ]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _give_back(self, published: _Published) -> None:
        """Withdraw a request and report it, unless a consumer is fetching it."""
        cache = published.caches[0]
        if not published.is_fetched and cache.cache_id in self._by_cache:
            if self._worker.cache_manager.leased_blocks(cache):
                # The end of the lease, whose duration is limited, decides.
                with self._wake:
                    published.deadline = time.monotonic() + self._worker.options.lease_ms / 1000
                return
            who = "not every worker of its consumer" if published.released else "no consumer"
            logger.warning(
                "request %s: %s has fetched its blocks within hold_ms %d; they are taken back",
                published.request_id,
                who,
                self._worker.options.hold_ms,
            )
        with self._wake:
            self._by_cache.pop(cache.cache_id, None)
        self._worker.withdraw(published.caches)
        with self._wake:
            self._published.pop(published.request_id, None)
        self._reports.count_released(published.reason)
        self._reports.add_sent(published.request_id)
