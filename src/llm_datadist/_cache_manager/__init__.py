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

__all__ = ["CacheManager"]


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


# Errors about a call's arguments, and help, name the class that callers know.
for _group in CacheManager.__bases__:
    for _name, _call in vars(_group).items():
        if not _name.startswith("_"):
            _call.__qualname__ = f"{CacheManager.__name__}.{_name}"
