"""How many consumer workers fetch each request from a producer's worker."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from llm_datadist import LLMException
from llm_datadist.integrations.vllm.rank_layouts import Indivisible, peers_of
from llm_datadist.integrations.vllm.worker.compatibility import tp_size_of
from llm_datadist.integrations.vllm.worker.facts_page import pull_facts

if TYPE_CHECKING:
    from llm_datadist.integrations.vllm.worker.instance import WorkerInstance

logger = logging.getLogger("llm_datadist.vllm")


class Readers:
    """Readers of this worker's requests, by the tensor-parallel size of the consumer's engine.

    For the withdrawing thread alone.

    Args:
        worker: The worker's instance.
    """

    def __init__(self, worker: WorkerInstance) -> None:
        self._worker = worker
        self._numbers: dict[int, int] = {}

    def number(self, cluster_id: int) -> int:
        """Return how many workers of a consumer's engine fetch each request from this worker.

        A consumer's worker is asked once, over its link. One that does not answer has ended or
        will fail to fetch: it counts alone, so that no blocks are kept for it.

        Args:
            cluster_id: A worker of that engine.
        """
        number = self._numbers.get(cluster_id)
        if number is None:
            own = self._worker.rank_layouts
            try:
                tp_size = tp_size_of(pull_facts(self._worker.cache_manager, cluster_id))
                number = len(peers_of(own.tp_size, own.rank, tp_size))
            except (Indivisible, LLMException, ValueError) as error:
                logger.info("the consumer %d does not tell its size: %s", cluster_id, error)
                return 1
            self._numbers[cluster_id] = number
        return number
