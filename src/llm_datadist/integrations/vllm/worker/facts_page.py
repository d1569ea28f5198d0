"""Pulls the compatibility facts of linked workers, each of which publishes its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llm_datadist import BlocksCacheKey, CacheDesc, DataType
from llm_datadist.integrations.vllm.worker.compatibility import (
    FACTS_BYTES,
    FACTS_MODEL_ID,
    read_facts,
)

if TYPE_CHECKING:
    from llm_datadist import CacheManager


def pull_facts(manager: CacheManager, cluster_id: int) -> dict[str, str]:
    """Return the facts of a linked worker.

    Raises:
        ValueError: What it publishes are no facts.
        LLMException: As `pull_blocks`.
    """
    page = np.zeros(FACTS_BYTES, np.uint8)
    desc = CacheDesc(1, [1, FACTS_BYTES], DataType.DT_UINT8)
    cache = manager.register_blocks_cache(desc, [page.ctypes.data], remote_accessible=False)
    try:
        manager.pull_blocks(BlocksCacheKey(cluster_id, FACTS_MODEL_ID), cache, [0], [0])
        return read_facts(page.tobytes())
    finally:
        manager.unregister_cache(cache.cache_id)
