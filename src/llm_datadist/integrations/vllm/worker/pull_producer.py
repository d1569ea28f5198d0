"""The producer's side of a worker: keeps finished prompts' blocks for those that fetch them.

A request's blocks are reachable under a key of its own, which only its offer tells. A consumer
leases the key, pulls and releases; then, or when it is lost, or when nobody has come within the
hold time, the key is withdrawn and *after that* vLLM gets the blocks back. Withdrawing is final, so
a consumer that comes or goes on too late gets an error, never another request's bytes.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_datadist import LLMException

if TYPE_CHECKING:
    from llm_datadist import Cache
    from llm_datadist.integrations.vllm.worker.instance import WorkerInstance
    from llm_datadist.integrations.vllm.worker.wakeup import Changes
    from llm_datadist.leases import LeaseEnd

__all__ = ["PullProducer"]

logger = logging.getLogger("llm_datadist.vllm")

_RETRY_S = 1.0


@dataclass(slots=True)
class _Kept:
    """A request whose key is published.

    Attributes:
        request_id: Of this engine.
        caches: Its registrations, one for each part of the layout.
        deadline: When the blocks go back to vLLM if no lease is on them; None before the offer.
        is_fetched: Whether a lease on it has ended.
    """

    request_id: str
    caches: list[Cache]
    deadline: float | None = None
    is_fetched: bool = False


class PullProducer:
    """Keeps and gives back. Calls of the model's thread never wait for a transfer.

    Args:
        worker: The worker's instance.
        changes: Told when there is something in `take_sent`.
    """

    def __init__(self, worker: WorkerInstance, changes: Changes) -> None:
        self._worker = worker
        self._changes = changes
        self._hold_s = worker.options.hold_ms / 1000
        self._wake = threading.Condition()
        self._kept: dict[str, _Kept] = {}
        self._by_cache: dict[int, _Kept] = {}
        self._sent: set[str] = set()
        self._closed = False
        worker.cache_manager.on_lease_end(self._lease_ended)
        self._keeper = threading.Thread(
            target=self._keep, name="llm_datadist-vllm-keeper", daemon=True
        )
        self._keeper.start()

    def publish(self, request_id: str, key: int) -> None:
        """Register the memory under a request's key; where that fails the offer will be void."""
        try:
            caches = self._worker.publish(key)
        except LLMException as error:
            logger.error("request %s: its blocks cannot be offered: %s", request_id, str(error))
            return
        with self._wake:
            kept = self._kept[request_id] = _Kept(request_id, caches)
            self._by_cache[caches[0].cache_id] = kept

    def hold(self, request_id: str) -> None:
        """The key is being given away: keep the blocks until they are fetched or the time is up."""
        with self._wake:
            kept = self._kept.get(request_id)
            if kept is None:
                self._sent.add(request_id)
            else:
                kept.deadline = time.monotonic() + self._hold_s
            self._wake.notify_all()
        self._changes.notify()

    def withdraw(self, request_id: str) -> None:
        """Nobody will fetch this request."""
        with self._wake:
            kept = self._kept.pop(request_id, None)
            if kept is not None:
                del self._by_cache[kept.caches[0].cache_id]
        if kept is not None:
            self._worker.withdraw(kept.caches)

    def take_sent(self) -> set[str]:
        """Requests whose blocks vLLM can have back; each is returned once."""
        with self._wake:
            sent, self._sent = self._sent, set()
            return sent

    @property
    def is_waiting(self) -> bool:
        """Whether vLLM waits for blocks."""
        return any(kept.deadline is not None for kept in list(self._kept.values()))

    def close(self) -> None:
        """Stop; idempotent."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        self._keeper.join()

    def _lease_ended(self, end: LeaseEnd) -> None:
        with self._wake:
            kept = self._by_cache.get(end.cache_id)
            if kept is None:
                return
            kept.is_fetched = True
            if end.reason != "released":
                logger.warning(
                    "request %s: the lease of cluster %d ended: %s; its blocks are taken back",
                    kept.request_id,
                    end.cluster_id,
                    end.reason,
                )
            self._wake.notify_all()

    def _keep(self) -> None:
        while True:
            with self._wake:
                due = self._due()
                while not due and not self._closed:
                    self._wake.wait(self._until_next())
                    due = self._due()
                if self._closed:
                    return
            for kept in due:
                try:
                    self._give_back(kept)
                except Exception:
                    # Blocks whose key may be alive are not given back; better none than wrong ones.
                    logger.exception("request %s: its key is not withdrawn yet", kept.request_id)
                    kept.deadline = time.monotonic() + _RETRY_S
                    kept.is_fetched = False

    def _due(self) -> list[_Kept]:
        now = time.monotonic()
        return [
            kept
            for kept in self._kept.values()
            if kept.deadline is not None and (kept.is_fetched or kept.deadline <= now)
        ]

    def _until_next(self) -> float | None:
        deadlines = [kept.deadline for kept in self._kept.values() if kept.deadline is not None]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _give_back(self, kept: _Kept) -> None:
        cache = kept.caches[0]
        if not kept.is_fetched and cache.cache_id in self._by_cache:
            if self._worker.cache_manager.leased_blocks(cache):
                # Somebody is fetching it just now; the lease's end, which has a limit, decides.
                with self._wake:
                    kept.deadline = time.monotonic() + self._worker.options.lease_ms / 1000
                return
            logger.warning(
                "request %s: no consumer has fetched its blocks within hold_ms %d; they are taken "
                "back",
                kept.request_id,
                self._worker.options.hold_ms,
            )
        with self._wake:
            self._by_cache.pop(cache.cache_id, None)
        self._worker.withdraw(kept.caches)
        with self._wake:
            self._kept.pop(kept.request_id, None)
            self._sent.add(kept.request_id)
        self._changes.notify()
