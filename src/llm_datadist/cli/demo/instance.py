"""A worker's LLMDataDist instance and its registered KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_datadist import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    DataType,
    LLMConfig,
    LLMDataDist,
    LLMRole,
    Placement,
)

if TYPE_CHECKING:
    from llm_datadist.cli.demo.paged_kv import PagedKvCache

_TRANSFER_TIMEOUT_MS = 10_000


def open_instance(role: LLMRole, cluster_id: int, backend: str, *, listen: bool) -> LLMDataDist:
    """Initialize an instance; a listening one takes any free port of the loopback address."""
    config = LLMConfig()
    config.enable_cache_manager = True
    config.enable_remote_cache_accessible = True
    config.transfer_backend = backend
    config.sync_kv_timeout = _TRANSFER_TIMEOUT_MS
    if listen:
        config.listen_ip_info = "127.0.0.1:0"
        config.allow_anonymous = True  # it serves made-up caches, on loopback, for some seconds
    instance = LLMDataDist(role, cluster_id)
    instance.init(config.generate_options())
    return instance


def register(instance: LLMDataDist, kv: PagedKvCache) -> Cache:
    """Register a paged KV cache under this instance's BlocksCacheKey.

    The caller must keep `kv` alive until the instance is finalized.
    """
    desc = CacheDesc(len(kv.tensors), kv.shape, DataType.DT_FLOAT, Placement.HOST)
    return instance.cache_manager.register_blocks_cache(
        desc, kv.addresses, BlocksCacheKey(instance.cluster_id), remote_accessible=True
    )
