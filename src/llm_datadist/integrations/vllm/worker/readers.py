"""Whether all of a consumer's workers have fetched a request from a producer's worker."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from llm_datadist import LLMException
from llm_datadist.integrations.vllm.rank_layouts import Indivisible, peers_of
from llm_datadist.integrations.vllm.worker.compatibility import share_of
from llm_datadist.integrations.vllm.worker.facts_page import pull_facts

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from llm_datadist.integrations.vllm.worker.compatibility import Share
    from llm_datadist.integrations.vllm.worker.instance import WorkerInstance

_MOST_KEPT = 1024
"""A consumer that restarts has other workers."""

logger: logging.Logger = logging.getLogger("llm_datadist.vllm")


class Readers:
    """Knows what the workers hold that fetch this worker's requests.

    For the withdrawing thread alone.

    Args:
        worker: The worker's instance.
    """

    def __init__(self, worker: WorkerInstance) -> None:
        self._worker = worker
        self._shares: dict[int, Share] = {}

    def have_all(self, cluster_ids: Collection[int]) -> bool:
        """Return whether these workers of a consumer hold all that this worker holds.

        A consumer's worker is asked once, over its link, for its tensor-parallel rank and layers.
        One that does not answer has ended or will fail to fetch: it counts as all, so that no
        blocks are kept for its engine.

        Args:
            cluster_ids: Workers that have fetched a request.
        """
        shares = []
        for cluster_id in cluster_ids:
            share = self._share(cluster_id)
            if share is None:
                return True
            shares.append(share)
        return any(self._is_covered(size, shares) for size in {each.tp_size for each in shares})

    def _share(self, cluster_id: int) -> Share | None:
        share = self._shares.get(cluster_id)
        if share is None:
            own = self._worker.rank_layouts
            try:
                share = share_of(pull_facts(self._worker.cache_manager, cluster_id))
                peers_of(own.tp_size, own.rank, share.tp_size)
            except (Indivisible, LLMException, ValueError) as error:
                logger.info("the consumer %d does not tell its size: %s", cluster_id, error)
                return None
            if len(self._shares) >= _MOST_KEPT:
                self._shares.clear()
            self._shares[cluster_id] = share
        return share

    def _is_covered(self, tp_size: int, shares: Sequence[Share]) -> bool:
        """Return whether the workers of an engine of this size have all heads and layers."""
        own = self._worker.rank_layouts
        for rank in peers_of(own.tp_size, own.rank, tp_size):
            held = [
                each.layers for each in shares if (each.tp_size, each.tp_rank) == (tp_size, rank)
            ]
            if not held or not _covers(held, own.stage.layers):
                return False
        return True


def _covers(held: Sequence[range | None], layers: range | None) -> bool:
    """Return whether these ranges hold all layers; one that is not known holds all."""
    if layers is None or None in held:
        return True
    return all(any(layer in each for each in held if each is not None) for layer in layers)
