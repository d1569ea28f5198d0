"""Links of a consumer's worker to producers: made when first needed, checked once, made anew."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    DataType,
    LLMClusterInfo,
    LLMException,
    LLMStatusCode,
)
from llm_datadist.integrations.vllm.worker.compatibility import (
    FACTS_BYTES,
    FACTS_MODEL_ID,
    mismatches,
    read_facts,
)

if TYPE_CHECKING:
    from llm_datadist.integrations.vllm.kv_transfer_params import RankAddress
    from llm_datadist.integrations.vllm.worker.instance import WorkerInstance

__all__ = ["Incompatible", "ProducerLinks", "Unreachable"]

logger = logging.getLogger("llm_datadist.vllm")


class Incompatible(Exception):
    """The producer's KV blocks do not mean the same here; the text says in which respects."""


class Unreachable(Exception):
    """The producer cannot be linked; the text says why."""


class ProducerLinks:
    """The producers that this worker has met. Thread-safe; calls of one producer are in turn."""

    def __init__(self, worker: WorkerInstance) -> None:
        self._worker = worker
        self._lock = threading.Lock()
        self._turns: dict[int, threading.Lock] = {}
        self._linked: set[int] = set()
        self._refused: dict[int, str] = {}
        self._silent: dict[int, tuple[float, str]] = {}

    def link(self, rank: RankAddress) -> None:
        """Have a link to this producer whose facts are those of this worker.

        Raises:
            Incompatible: They are not.
            Unreachable: There is no link.
        """
        with self._lock:
            turn = self._turns.setdefault(rank.cluster_id, threading.Lock())
        with turn:
            if rank.cluster_id in self._refused:
                raise Incompatible(self._refused[rank.cluster_id])
            until, reason = self._silent.get(rank.cluster_id, (0.0, ""))
            if time.monotonic() < until:
                raise Unreachable(f"not tried, as it did not answer a moment ago: {reason}")
            if rank.cluster_id in self._linked:
                return
            self._dial(rank)
            differences = mismatches(self._worker.facts, self._pull_facts(rank))
            if differences:
                self._refused[rank.cluster_id] = (
                    f"the producer at {rank.ip}:{rank.port} does not fit: "
                    f"{'; '.join(differences)}; run producer and consumer with the same model, "
                    "vLLM and KV settings"
                )
                self._unlink(rank)
                raise Incompatible(self._refused[rank.cluster_id])
            self._linked.add(rank.cluster_id)
            logger.info("linked to the producer at %s:%d", rank.ip, rank.port)

    def drop(self, rank: RankAddress) -> None:
        """A call has found the link broken: the next one links anew."""
        self._linked.discard(rank.cluster_id)

    def silent(self, rank: RankAddress, reason: str) -> None:
        """A call was in vain for a whole time limit: for a while, others fail without waiting."""
        until = time.monotonic() + self._worker.options.link_timeout_ms / 1000
        self._silent[rank.cluster_id] = until, reason

    def _dial(self, rank: RankAddress) -> None:
        info = LLMClusterInfo()
        info.remote_cluster_id = rank.cluster_id
        info.append_remote_ip_info(rank.ip, rank.port)
        status, _ = self._worker.instance.link_clusters(
            [info], self._worker.options.link_timeout_ms
        )
        if status != LLMStatusCode.LLM_SUCCESS:
            reason = f"no link to the producer at {rank.ip}:{rank.port}: {status}"
            self.silent(rank, reason)
            raise Unreachable(reason)

    def _unlink(self, rank: RankAddress) -> None:
        info = LLMClusterInfo()
        info.remote_cluster_id = rank.cluster_id
        self._worker.instance.unlink_clusters([info], force=True)

    def _pull_facts(self, rank: RankAddress) -> dict[str, str]:
        manager = self._worker.cache_manager
        page = np.zeros(FACTS_BYTES, np.uint8)
        desc = CacheDesc(1, [1, FACTS_BYTES], DataType.DT_UINT8)
        cache = manager.register_blocks_cache(desc, [page.ctypes.data], remote_accessible=False)
        try:
            key = BlocksCacheKey(rank.cluster_id, FACTS_MODEL_ID)
            manager.pull_blocks(key, cache, [0], [0])
            return read_facts(page.tobytes())
        except (LLMException, ValueError) as error:
            raise Unreachable(
                f"no facts of the producer at {rank.ip}:{rank.port}: {error}"
            ) from None
        finally:
            manager.unregister_cache(cache.cache_id)
