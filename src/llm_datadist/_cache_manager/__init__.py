"""CacheManager: the cache calls of the API. Checks the types of arguments and calls the engine.

One module per group of calls.
"""

from __future__ import annotations

from llm_datadist._cache_manager.caches import CacheCalls
from llm_datadist._cache_manager.leases import LeaseCalls
from llm_datadist._cache_manager.local import LocalCalls
from llm_datadist._cache_manager.memory import MemoryCalls
from llm_datadist._cache_manager.resharded import ReshardedCalls
from llm_datadist._cache_manager.tensors import TensorCalls
from llm_datadist._cache_manager.transfers import TransferCalls
from llm_datadist._types.named_calls import names_calls

__all__ = ["CacheManager"]


@names_calls
class CacheManager(
    CacheCalls, TransferCalls, LocalCalls, MemoryCalls, LeaseCalls, ReshardedCalls, TensorCalls
):
    """Registers, allocates and moves caches of one instance. Got from LLMDataDist.cache_manager.

    Thread-safe; several transfers may run at once, on one link too. The GIL is released while bytes
    move and while a call waits. After `LLMDataDist.finalize` every method raises RuntimeError.
    Source: api.md 5 and 7.
    """

    def __repr__(self) -> str:
        return f"CacheManager(cluster_id={self._engine.cluster_id})"
