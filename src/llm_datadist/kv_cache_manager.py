"""KvCacheManager, under the name of its own module.

Source: api.md 8.
"""

from llm_datadist._kv_cache_manager import KvCacheManager
from llm_datadist._types import KvCache, Tensor, TensorDesc

__all__ = ["KvCache", "KvCacheManager", "Tensor", "TensorDesc"]
