"""Links of a consumer's worker to producers: made on first use, checked for compatibility once."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING

from llm_datadist import LLMClusterInfo, LLMException, LLMStatusCode
from llm_datadist.integrations.vllm.worker.compatibility import Expected, mismatches
from llm_datadist.integrations.vllm.worker.facts_page import pull_facts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_datadist.integrations.vllm.kv_transfer_params import RankAddress
    from llm_datadist.integrations.vllm.worker.instance import WorkerInstance

logger: logging.Logger = logging.getLogger("llm_datadist.vllm")

_MOST_KEPT = 1024
"""Producers that are remembered: clients choose which ones an offer names."""

LINK_GONE = {LLMStatusCode.LLM_NOT_YET_LINK, LLMStatusCode.LLM_LINK_FAILED}
"""Codes after which the producer must be linked again."""


class Incompatible(Exception):
    """The producer's KV blocks cannot be used by this worker; the text names the differences."""


class Unreachable(Exception):
    """The producer cannot be linked; the text says why."""


class Late(Unreachable):
    """The time limit of a request's transfer is over."""


_REASONS = {
    LLMStatusCode.LLM_TIMEOUT: "timeout",
    LLMStatusCode.LLM_NOT_YET_LINK: "link_lost",
    LLMStatusCode.LLM_LINK_FAILED: "link_lost",
    LLMStatusCode.LLM_KV_CACHE_NOT_EXIST: "withdrawn",
    LLMStatusCode.LLM_SUSPECT_REMOTE_ERROR: "memory_fault",
    LLMStatusCode.LLM_DEVICE_MEM_ERROR: "memory_fault",
    LLMStatusCode.LLM_ENGINE_FINALIZED: "closed",
}


def reason_of(error: Exception) -> str:
    """Return why a request is recomputed, for the label of a metric."""
    if isinstance(error, LLMException):
        return _REASONS.get(error.status_code, "error")
    kinds = {Incompatible: "incompatible", Unreachable: "unreachable", Late: "timeout"}
    return kinds.get(type(error), "error")


class ProducerLinks:
    """Links to the producers that this worker has met. Thread-safe; one dial per producer."""

    def __init__(self, worker: WorkerInstance) -> None:
        self._worker = worker
        self._lock = threading.Lock()
        self._dial_locks: dict[int, tuple[threading.Lock, int]] = {}
        self._linked: set[int] = set()
        self._facts: dict[int, dict[str, str]] = {}
        self._silent: dict[int, tuple[float, str]] = {}

    def link(self, rank: RankAddress, expected: Expected | None = None) -> None:
        """Ensure a link to a compatible producer.

        Args:
            rank: The producer's worker.
            expected: Facts that it must have; None = those of this worker.

        Raises:
            Incompatible: The producer does not fit.
            Unreachable: There is no link.
        """
        with self._dial_lock(rank.cluster_id):
            is_new = self._link_once(rank, expected or Expected(self._worker.facts))
        if is_new:
            logger.info("linked to the producer at %s:%d", rank.ip, rank.port)

    def drop(self, rank: RankAddress) -> None:
        """Forget a broken link; the next `link` dials again."""
        self._linked.discard(rank.cluster_id)

    def mark_silent(self, rank: RankAddress, reason: str) -> None:
        """Fail calls of `link` at once for link_timeout_ms, because the producer did not answer."""
        until = time.monotonic() + self._worker.options.link_timeout_ms / 1000
        if len(self._silent) >= _MOST_KEPT:
            self._silent.clear()
        self._silent[rank.cluster_id] = until, reason

    @contextlib.contextmanager
    def _dial_lock(self, cluster_id: int) -> Iterator[None]:
        """Hold the lock of a producer, which exists while a thread holds it or waits for it."""
        with self._lock:
            dial_lock, users = self._dial_locks.get(cluster_id, (threading.Lock(), 0))
            self._dial_locks[cluster_id] = dial_lock, users + 1
        try:
            with dial_lock:
                yield
        finally:
            with self._lock:
                _, users = self._dial_locks.pop(cluster_id)
                if users > 1:
                    self._dial_locks[cluster_id] = dial_lock, users - 1

    def _link_once(self, rank: RankAddress, expected: Expected) -> bool:
        """Make the link unless there is one; return whether it was made. Under its dial lock."""
        facts = self._facts.get(rank.cluster_id)
        if facts is not None:
            _check(rank, expected, facts)
        until, reason = self._silent.get(rank.cluster_id, (0.0, ""))
        if time.monotonic() < until:
            raise Unreachable(f"not tried, as it did not answer a moment ago: {reason}")
        if facts is not None and rank.cluster_id in self._linked:
            return False
        self._dial(rank)
        facts = self._pull_facts(rank)
        if len(self._facts) >= _MOST_KEPT:  # their next `link` asks them again
            self._facts.clear()
            self._linked.clear()
        self._facts[rank.cluster_id] = facts
        try:
            _check(rank, expected, facts)
        except Incompatible:
            self._unlink(rank)
            raise
        self._linked.add(rank.cluster_id)
        return True

    def _dial(self, rank: RankAddress) -> None:
        info = LLMClusterInfo()
        info.remote_cluster_id = rank.cluster_id
        info.append_remote_ip_info(rank.ip, rank.port)
        status, _ = self._worker.instance.link_clusters(
            [info], self._worker.options.link_timeout_ms
        )
        if status != LLMStatusCode.LLM_SUCCESS:
            reason = f"no link to the producer at {rank.ip}:{rank.port}: {status}"
            self.mark_silent(rank, reason)
            raise Unreachable(reason)

    def _unlink(self, rank: RankAddress) -> None:
        info = LLMClusterInfo()
        info.remote_cluster_id = rank.cluster_id
        self._worker.instance.unlink_clusters([info], force=True)

    def _pull_facts(self, rank: RankAddress) -> dict[str, str]:
        try:
            return pull_facts(self._worker.cache_manager, rank.cluster_id)
        except (LLMException, ValueError) as error:
            raise Unreachable(
                f"no facts of the producer at {rank.ip}:{rank.port}: {error}"
            ) from None


def _check(rank: RankAddress, expected: Expected, facts: dict[str, str]) -> None:
    differences = mismatches(expected, facts)
    if differences:
        raise Incompatible(
            f"the producer at {rank.ip}:{rank.port} does not fit: {'; '.join(differences)}; run "
            "producer and consumer with the same model, vLLM and KV settings"
        )
