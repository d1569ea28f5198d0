"""What a type checker makes of programs that use the package; checked by mypy, never run."""

from __future__ import annotations

from typing_extensions import assert_type

from llm_datadist import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    CacheManager,
    CacheTask,
    DataType,
    LayerSynchronizer,
    LLMClusterInfo,
    LLMConfig,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
    MemInfo,
    Memtype,
    Placement,
    RegisterMemStatus,
    TransferWithCacheKeyConfig,
)


class EveryLayer(LayerSynchronizer):
    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        return layer_index >= 0


def options() -> dict[str, str]:
    config = LLMConfig()
    config.enable_cache_manager = True
    config.listen_ip_info = "127.0.0.1:0"
    config.device_id = [0, 1]
    return assert_type(config.generate_options(), dict[str, str])


def link() -> LLMDataDist:
    instance = LLMDataDist(LLMRole.PROMPT, 1)
    instance.init(options())
    cluster = LLMClusterInfo()
    cluster.remote_cluster_id = 2
    cluster.append_local_ip_info("127.0.0.1", 0)
    cluster.append_remote_ip_info("127.0.0.1", 26000)
    overall, each = instance.link_clusters([cluster], timeout=3000)
    assert_type(overall, LLMStatusCode)
    assert_type(each, list[LLMStatusCode])
    assert_type(instance.link("name", {1: 0, 2: 1}, "{}"), int)
    assert_type(instance.query_register_mem_status(1), RegisterMemStatus)
    assert_type(
        instance.unlink_clusters([cluster], force=True), tuple[LLMStatusCode, list[LLMStatusCode]]
    )
    return instance


def move(manager: CacheManager) -> None:
    desc = CacheDesc(2, (16, 128), DataType.DT_FLOAT16, Placement.HOST)
    cache = manager.register_blocks_cache(desc, [4096, 8192], BlocksCacheKey(1))
    assert_type(cache, Cache)
    assert_type(cache.tensor_addrs, list[int])
    manager.pull_blocks(BlocksCacheKey(2), cache, [0, 1], (2, 3), src_layer_range=range(1))
    manager.pull_cache(CacheKey(2, req_id=7), cache, size=64)
    manager.push_cache(CacheKeyByIdAndIndex(2, 1), cache)
    manager.copy_blocks(cache, {0: [1, 2]})
    manager.remap_registered_memory(MemInfo(Memtype.MEM_TYPE_DEVICE, 4096, 4096))
    config = TransferWithCacheKeyConfig(BlocksCacheKey(2), range(1), range(1))
    task = manager.transfer_cache_async(cache, EveryLayer(), [config], [0], [0])
    assert_type(task, CacheTask)
    assert_type(task.synchronize(100), LLMStatusCode)
    assert_type(task.get_results(), list[LLMStatusCode | None])
    assert_type(manager.unregister_cache(cache.cache_id), None)


def status_of(error: LLMException) -> LLMStatusCode:
    return assert_type(error.status_code, LLMStatusCode)


def mistakes(manager: CacheManager, cache: Cache) -> None:
    LLMDataDist("prompt", 1)  # type: ignore[arg-type]
    manager.pull_blocks("key", cache)  # type: ignore[arg-type]
    manager.push_cache(BlocksCacheKey(1), cache)  # type: ignore[arg-type]
    cache.cache_id = 3  # type: ignore[misc]
