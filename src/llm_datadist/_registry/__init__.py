"""Who has which memory: the caches and keys of this instance, its pools, and peers' directories.

`caches` is the owner's registry, over `pool` (memory to hand out) and `writer` (what peers are
told); `reader` is a peer's directory as seen from here. `records` is what both agree on.
"""

from __future__ import annotations

from llm_datadist._registry.caches import CacheRegistry
from llm_datadist._registry.local_cache import LocalCache
from llm_datadist._registry.node import MemoryListener, Node
from llm_datadist._registry.pool import OutOfMemory, Pool, PoolUse
from llm_datadist._registry.reader import DirectoryReader, DirectorySource, RemoteCache, Resolved
from llm_datadist._registry.records import CorruptDirectory

__all__ = [
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
]
