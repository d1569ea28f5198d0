"""LLM-DataDist for any Linux machine: moves KV caches between prefill and decode processes.

Start with `LLMDataDist`; `LLMConfig` makes its options, `LLMDataDist.cache_manager` moves caches.
Programs of the first generation move them with `LLMDataDist.kv_cache_manager`.

Source: api.md 1.
"""

from llm_datadist._cache_manager import CacheManager
from llm_datadist._datadist import LLMDataDist
from llm_datadist._errors import LLMException, LLMStatusCode, Status
from llm_datadist._kv_cache_manager import KvCacheManager
from llm_datadist._options import LLMConfig
from llm_datadist._types import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    CacheTask,
    DataType,
    KvCache,
    LayerSynchronizer,
    LLMClusterInfo,
    LLMRole,
    MemInfo,
    Memtype,
    Placement,
    RegisterMemStatus,
    Tensor,
    TensorDesc,
    TransferConfig,
    TransferWithCacheKeyConfig,
)

__version__ = "0.1.0"

LlmConfig = LLMConfig

#: Names of the cache-manager generation. The others are the first generation's: `KvCacheManager`,
#: `Tensor`, `TensorDesc`, and `KvCache`, its name of `Cache`.
v2_list: list[str] = [
    "BlocksCacheKey",
    "Cache",
    "CacheDesc",
    "CacheKey",
    "CacheKeyByIdAndIndex",
    "CacheManager",
    "CacheTask",
    "DataType",
    "LLMClusterInfo",
    "LLMConfig",
    "LLMDataDist",
    "LLMException",
    "LLMRole",
    "LLMStatusCode",
    "LayerSynchronizer",
    "LlmConfig",
    "MemInfo",
    "Memtype",
    "Placement",
    "RegisterMemStatus",
    "Status",
    "TransferConfig",
    "TransferWithCacheKeyConfig",
]

__all__ = [
    "BlocksCacheKey",
    "Cache",
    "CacheDesc",
    "CacheKey",
    "CacheKeyByIdAndIndex",
    "CacheManager",
    "CacheTask",
    "DataType",
    "KvCache",
    "KvCacheManager",
    "LLMClusterInfo",
    "LLMConfig",
    "LLMDataDist",
    "LLMException",
    "LLMRole",
    "LLMStatusCode",
    "LayerSynchronizer",
    "LlmConfig",
    "MemInfo",
    "Memtype",
    "Placement",
    "RegisterMemStatus",
    "Status",
    "Tensor",
    "TensorDesc",
    "TransferConfig",
    "TransferWithCacheKeyConfig",
]

# Tracebacks, help and pickles name a public class by where callers import it from.
for _name in __all__:
    globals()[_name].__module__ = __name__
del _name
