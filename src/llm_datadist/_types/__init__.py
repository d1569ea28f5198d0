"""Value types of the public interface, and the checks of arguments.

Source: api.md 2, 4.9, 5, 6.
"""

from llm_datadist._types.block_list import BlockList
from llm_datadist._types.cache import Cache, KvCache
from llm_datadist._types.cluster import LLMClusterInfo
from llm_datadist._types.desc import CacheDesc
from llm_datadist._types.enums import DataType, LLMRole, Memtype, Placement, RegisterMemStatus
from llm_datadist._types.keys import AnyKey, BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from llm_datadist._types.task import CacheTask, TaskState
from llm_datadist._types.tensor import Tensor, TensorDesc
from llm_datadist._types.transfer_configs import (
    LayerSynchronizer,
    MemInfo,
    TransferConfig,
    TransferWithCacheKeyConfig,
)

__all__ = [
    "AnyKey",
    "BlockList",
    "BlocksCacheKey",
    "Cache",
    "CacheDesc",
    "CacheKey",
    "CacheKeyByIdAndIndex",
    "CacheTask",
    "DataType",
    "KvCache",
    "LLMClusterInfo",
    "LLMRole",
    "LayerSynchronizer",
    "MemInfo",
    "Memtype",
    "Placement",
    "RegisterMemStatus",
    "TaskState",
    "Tensor",
    "TensorDesc",
    "TransferConfig",
    "TransferWithCacheKeyConfig",
]
