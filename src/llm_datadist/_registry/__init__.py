"""Caches and keys of this instance, its pools, and the directories of peers.

`caches` is the owner's registry, over `pool` (page allocator) and `writer` (publishes the
directory); `reader` reads a peer's directory into `remote_caches`. `records` is the format that
both use.
"""

from __future__ import annotations

from llm_datadist._registry.caches import POOL_OPTIONS, CacheRegistry
from llm_datadist._registry.endings import consumed
from llm_datadist._registry.interfaces import MemoryListener, Node
from llm_datadist._registry.local_cache import LocalCache
from llm_datadist._registry.pool import OutOfMemory, Pool, PoolUse
from llm_datadist._registry.reader import DirectoryReader, DirectorySource
from llm_datadist._registry.records import CorruptDirectory
from llm_datadist._registry.remote_caches import RemoteCache, Resolved

__all__ = [
    "POOL_OPTIONS",
    "CacheRegistry",
    "CorruptDirectory",
    "DirectoryReader",
    "DirectorySource",
    "LocalCache",
    "MemoryListener",
    "Node",
    "OutOfMemory",
    "Pool",
    "PoolUse",
    "RemoteCache",
    "Resolved",
    "consumed",
]
