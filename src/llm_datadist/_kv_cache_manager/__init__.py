"""KvCacheManager: the cache calls of the first generation, by the engine of the cache manager.

Checks the types of arguments and the role of the instance, and calls the engine. One module per
group of calls; `holds` ends caches whose objects are gone.
"""

from __future__ import annotations

from llm_datadist._kv_cache_manager.caches import CacheCalls
from llm_datadist._kv_cache_manager.local import LocalCalls
from llm_datadist._kv_cache_manager.roles import RoleRules
from llm_datadist._kv_cache_manager.transfers import TransferCalls
from llm_datadist._types.named_calls import names_calls

__all__ = ["KvCacheManager", "RoleRules"]


@names_calls
class KvCacheManager(CacheCalls, TransferCalls, LocalCalls):
    """Allocates and moves caches of one instance. Got from LLMDataDist.kv_cache_manager.

    Thread-safe; several transfers may run at once, on one link too. The GIL is released while bytes
    move and while a call waits. After `LLMDataDist.finalize` every method but `is_initialized`
    raises RuntimeError.
    Source: api.md 8.
    """

    def __repr__(self) -> str:
        return f"KvCacheManager(cluster_id={self._engine.cluster_id}, role={self._roles.role})"
