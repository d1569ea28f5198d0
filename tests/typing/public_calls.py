"""Every public call as a type checker sees it; checked by mypy (test_typing.py), never run."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import REGISTRY
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
    KvCache,
    KvCacheManager,
    LayerSynchronizer,
    LLMClusterInfo,
    LLMConfig,
    LlmConfig,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
    MemInfo,
    Memtype,
    Placement,
    RegisterMemStatus,
    Status,
    Tensor,
    TensorDesc,
    TransferConfig,
    TransferWithCacheKeyConfig,
)
from llm_datadist.layouts import KvLayout, RankReport, dense, heads_of_rank
from llm_datadist.leases import Lease, LeaseEnd
from llm_datadist.metrics import Collector, MetricsServer, serve_metrics
from llm_datadist.stats import InstanceStats, TransferStats

LinkStatuses = tuple[LLMStatusCode, list[LLMStatusCode]]


class EveryLayer(LayerSynchronizer):
    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        return layer_index >= 0


def options() -> dict[str, str]:
    config = LLMConfig()
    config.device_id = 0
    config.device_id = [0, 1]
    config.device_id = (0, 1)
    config.sync_kv_timeout = 1000
    config.sync_kv_timeout = "1000"
    config.ge_options = {"ge.exec.rankId": "0"}
    config.ge_options["ge.flowGraphMemMaxSize"] = "1024"
    config.listen_ip_info = "127.0.0.1:0"
    config.enable_cache_manager = True
    config.enable_remote_cache_accessible = False
    config.mem_pool_cfg = config.host_mem_pool_cfg = '{"memory_size": 1048576}'
    config.local_comm_res = ""
    config.link_total_time = 10
    config.link_retry_count = 1
    config.rdma_traffic_class = 132
    config.rdma_service_level = 4
    config.transfer_backend = "auto"
    config.global_resource_config = config.buf_pool_cfg = "{}"
    config.enable_switch_role = True
    config.mem_utilization = 0.9
    config.cluster_info = config.deploy_res_path = config.output_max_size = "x"
    config.max_registered_addrs = 240
    config.link_base_port = 60000
    config.link_secret = "secret"
    config.tls_cert = config.tls_key = config.tls_ca = "file.pem"
    config.tls_lanes = config.allow_anonymous = True
    config.device = "cpu"
    config.transfer_threads = 2
    config.lanes_per_link = 4
    config.slow_transfer_ms = 500
    config.checksum = "crc32c"
    config.gpu_copy = "kernel"
    config.nixl_backend, config.nixl_params, config.strict_backend = "UCX", "{}", True
    assert_type(LlmConfig().gen_options(), dict[str, str])
    return assert_type(config.generate_options(), dict[str, str])


def cluster() -> LLMClusterInfo:
    info = LLMClusterInfo()
    info.remote_cluster_id = 2
    info.remote_role_type = LLMRole.DECODER
    info.append_local_ip_info("127.0.0.1", 0)
    info.append_remote_ip_info(ip=3499688896, port=26000)
    assert_type(info.remote_cluster_id, int | None)
    assert_type(info.local_ip_info_list, list[tuple[str, int]])
    assert_type(info.remote_ip_info_list, list[tuple[str, int]])
    return info


def live() -> LLMDataDist:
    instance = LLMDataDist(LLMRole.PROMPT, cluster_id=1)
    assert_type(instance.init(options()), None)
    assert_type(instance.cluster_id, int)
    assert_type(instance.role, LLMRole)
    assert_type(instance.listen_address, tuple[str, int] | None)
    assert_type(instance.cache_manager, CacheManager)
    assert_type(LLMDataDist.llm_engine_instance, LLMDataDist | None)
    with LLMDataDist(LLMRole.MIX, 3) as other:
        assert_type(other, LLMDataDist)
    return instance


def link(instance: LLMDataDist) -> None:
    overall, each = instance.link_clusters([cluster()], timeout=3000)
    assert_type(overall, LLMStatusCode)
    assert_type(each, list[LLMStatusCode])
    assert_type(instance.link_clusters((cluster(),)), LinkStatuses)
    assert_type(instance.unlink_clusters([cluster()], timeout=3000, force=True), LinkStatuses)
    comm_id = instance.link(comm_name="a", cluster_rank_info={1: 0, 2: 1}, rank_table="{}")
    assert_type(comm_id, int)
    assert_type(instance.query_register_mem_status(comm_id=comm_id), RegisterMemStatus)
    assert_type(instance.describe_domain(comm_id), dict[str, object])
    assert_type(instance.unlink(comm_id), None)
    assert_type(instance.switch_role(LLMRole.MIX), None)
    assert_type(instance.switch_role(LLMRole.MIX, switch_options=options()), None)
    assert_type(instance.check_link_status(remote_cluster_id=2), None)
    assert_type(instance.describe_link(2), dict[str, object])
    assert_type(instance.describe_remote_caches(2), list[dict[str, object]])
    assert_type(instance.describe_relinks(), list[dict[str, object]])
    assert_type(instance.stats(), InstanceStats)
    assert_type(instance.finalize(), None)


def look_inside(instance: LLMDataDist) -> None:
    stats = instance.stats()
    for entry in stats.transfers:
        assert_type(entry, TransferStats)
        assert_type((entry.operation, entry.path), tuple[str, str])
        assert_type((entry.completed, entry.num_bytes), tuple[int, int])
        assert_type((entry.seconds.counts, entry.seconds.sum), tuple[tuple[int, ...], float])
        assert_type(entry.errors["LLM_TIMEOUT"], int)
    assert_type((stats.links.linked, stats.links.relinked), tuple[int, int])
    assert_type([pool.used_bytes for pool in stats.pools], list[int])
    with serve_metrics(instance, 0, host="127.0.0.1") as server:
        assert_type(server, MetricsServer)
        assert_type(server.address, tuple[str, int])
    REGISTRY.register(Collector(instance, instance))


def first_generation(instance: LLMDataDist) -> None:
    manager = instance.kv_cache_manager
    assert_type(manager, KvCacheManager)
    assert_type(manager.is_initialized(), bool)
    cache = manager.allocate_cache(describe(), [CacheKey(prompt_cluster_id=1, req_id=2)])
    assert_type(cache, Cache)
    blocks = manager.allocate_blocks_cache(describe(), BlocksCacheKey(1))
    key = CacheKeyByIdAndIndex(1, 2)
    assert_type(manager.pull_cache(key, cache, 0, -1, src_cache_offset=8, dst_cache_offset=0), None)
    assert_type(manager.pull_blocks(BlocksCacheKey(1), blocks, [0], [1]), None)
    config = TransferConfig(1, cache.per_device_tensor_addrs[0])
    assert_type(manager.transfer_cache_async(cache, EveryLayer(), [config]), CacheTask)
    assert_type(manager.copy_cache(cache, cache, 0, 1), None)
    assert_type(manager.copy_blocks(blocks, {0: [1]}), None)
    assert_type(manager.swap_blocks(blocks, blocks, {0: 1}, after=7), None)
    manager.swap_blocks(blocks, blocks, {0: 1}, 7)  # type: ignore[call-arg]
    assert_type(manager.get_cache_tensors(cache, tensor_index=0), list[Tensor])
    assert_type(manager.remove_cache_key(CacheKey(1, 2)), None)
    assert_type(manager.deallocate_cache(cache), None)
    tensor = Tensor([1, 2], tensor_desc=TensorDesc(DataType.DT_BF16, [2]))
    assert_type(tensor.numpy(copy=True), NDArray[Any])
    assert_type(tensor.tensor_desc.shape, list[int])


def describe() -> CacheDesc:
    desc = CacheDesc(2, (16, 128), DataType.DT_FLOAT16, Placement.HOST, batch_dim_index=0)
    desc = CacheDesc(num_tensors=2, shape=[16, 128], data_type=DataType.DT_BF16)
    desc.update_dim(0, 32)
    assert_type(desc.num_tensors, int)
    assert_type(desc.shape, list[int])
    assert_type(desc.data_type, DataType)
    assert_type(desc.placement, Placement)
    assert_type((desc.batch_dim_index, desc.seq_len_dim_index), tuple[int, int])
    assert_type((desc.batch_size, desc.batch_dim, desc.size), tuple[int, int, int])
    return desc


def own(manager: CacheManager) -> Cache:
    desc = describe()
    cache = manager.register_cache(desc, [4096, 8192], [CacheKey(1, 5)], remote_accessible=True)
    assert_type(cache, Cache)
    key = BlocksCacheKey(1, model_id=0)
    assert_type(manager.register_blocks_cache(desc, [4096, 8192], key), Cache)
    assert_type(manager.register_tensors([np.zeros((4, 8))], key), Cache)
    assert_type(manager.allocate_cache(desc, cache_keys=(CacheKey(1, 6),)), Cache)
    assert_type(manager.allocate_blocks_cache(desc, blocks_cache_key=key), Cache)
    assert_type(manager.deallocate_cache(cache), None)
    assert_type(manager.deallocate_blocks_cache(cache), None)
    assert_type(manager.remove_cache_key(CacheKey(prompt_cluster_id=1, req_id=6)), None)
    assert_type(manager.unregister_cache(cache.cache_id), None)
    assert_type(cache.cache_desc, CacheDesc)
    assert_type(cache.tensor_addrs, list[int])
    assert_type(cache.per_device_tensor_addrs, list[list[int]])
    assert_type(cache.is_blocks_cache, bool)
    assert_type(cache.tensor(0), NDArray[Any])
    assert_type(cache.device_tensor(0).__cuda_array_interface__, dict[str, object])
    assert_type(Cache.create_cpu_cache(desc, [4096, 8192]), Cache)
    same: KvCache = Cache.create_cpu_cache(desc, [[4096, 8192]])
    return same


def keys() -> dict[object, int]:
    key = CacheKey(cluster_id=1, req_id=2, model_id=3, prefix_id=4)
    assert_type((key.cluster_id, key.prompt_cluster_id), tuple[int, int])
    assert_type((key.req_id, key.model_id, key.prefix_id), tuple[int, int, int])
    blocks = BlocksCacheKey(prompt_cluster_id=1)
    assert_type(
        (blocks.cluster_id, blocks.prompt_cluster_id, blocks.model_id), tuple[int, int, int]
    )
    slot = CacheKeyByIdAndIndex(cluster_id=1, cache_id=2, batch_index=3)
    assert_type((slot.cluster_id, slot.cache_id, slot.batch_index), tuple[int, int, int])
    return {key: 1, blocks: 2, slot: 3}


def move(manager: CacheManager, cache: Cache) -> None:
    blocks, slot = BlocksCacheKey(2), CacheKeyByIdAndIndex(2, 1)
    manager.pull_cache(CacheKey(2, req_id=7), cache, batch_index=1, size=64)
    manager.pull_cache(slot, cache, src_layer_range=range(1), dst_layer_range=range(1, 2))
    manager.pull_blocks(blocks, cache, [0, 1], (2, 3), tensor_num_per_layer=1)
    manager.pull_blocks(slot, cache, dst_blocks=[2, 3], request_id="cmpl-1")
    manager.push_blocks(blocks, cache, [0], [1], range(1), range(1), 2)
    manager.push_cache(slot, cache, 0, range(1), range(1), size=-1, tensor_num_per_layer=2)
    manager.copy_cache(dst=cache, src=cache, src_batch_index=1, offset=8, size=8, req_id=3)
    manager.copy_blocks(cache, {0: [1, 2]})
    manager.swap_blocks(cache, cache, {0: 1})
    manager.remap_registered_memory(MemInfo(Memtype.MEM_TYPE_DEVICE, 4096, 4096))
    region = MemInfo(mem_type=Memtype.MEM_TYPE_DEVICE, addr=4096, size=4096)
    assert_type((region.mem_type, region.addr, region.size), tuple[Memtype, int, int])
    assert_type(manager.remap_registered_memory([region]), None)
    for fault in manager.faulted_ranges():
        assert_type((fault.cluster_id, fault.addr, fault.size), tuple[int, int, int])


def reshard(manager: CacheManager, cache: Cache) -> None:
    layout = dense(
        "NHD", layers=range(2), kv_heads=8, heads=heads_of_rank(8, 2, 0), head_size=128,
        data_type=DataType.DT_BF16, block_tokens=16,
    )  # fmt: skip
    assert_type(layout, KvLayout)
    assert_type(manager.register_blocks_cache(describe(), [4096, 8192], layout=layout), Cache)
    assert_type(manager.allocate_blocks_cache(describe(), layout=layout), Cache)
    keys = [BlocksCacheKey(2), BlocksCacheKey(3)]
    assert_type(manager.pull_resharded(keys, cache, [[0], [1]], [2], 16, layers=range(1)), None)
    manager.pull_resharded(keys, cache, [[0], [1]], [2], 16, src_layouts=[layout, layout])
    assert_type(manager.push_resharded(keys, cache, [2], [[0], np.arange(1)], 16), None)
    (report, *_) = manager.explain_resharded(keys, cache, [[0], [1]], [2], 16, push=True)
    assert_type(report, RankReport)
    assert_type((report.rank, report.expected_rate, report.reason), tuple[int, float, str])
    manager.pull_resharded(keys, cache, [[0], [1]], [2], 16, 4)  # type: ignore[call-arg]


def lease(manager: CacheManager, cache: Cache) -> None:
    with manager.lease(BlocksCacheKey(2), [0, 1], ttl_ms=1000) as held:
        assert_type(held, Lease)
        assert_type((held.cluster_id, held.active), tuple[int, bool])
        assert_type(held.blocks, tuple[int, ...] | None)
        assert_type(held.renew(ttl_ms=1000), None)
    assert_type(manager.lease(CacheKey(2, req_id=7)).release(), None)
    assert_type(manager.leased_blocks(cache), frozenset[int])

    def ended(end: LeaseEnd) -> None:
        assert_type((end.cluster_id, end.cache_id), tuple[int, int])
        assert_type(end.blocks, tuple[int, ...])
        print(end.reason == "released")

    assert_type(manager.on_lease_end(ended), None)
    manager.on_lease_end(None)
    manager.lease(BlocksCacheKey(2), None, 1000)  # type: ignore[call-arg]


def move_layers(manager: CacheManager, cache: Cache) -> None:
    keyed = TransferWithCacheKeyConfig(BlocksCacheKey(2), range(1), range(1), src_batch_index=0)
    keyed.cache_key = CacheKeyByIdAndIndex(2, 1)
    assert_type(keyed.dst_layer_range, range | None)
    raw = TransferConfig(2, [4096, 8192])
    raw.src_layer_range = range(1)
    assert_type((raw.dst_cluster_id, raw.src_batch_index), tuple[int, int])
    assert_type(raw.dst_addrs, list[int])
    task = manager.transfer_cache_async(cache, EveryLayer(), [keyed], [0], [0])
    task = manager.transfer_cache_async(cache, EveryLayer(), (raw,), dst_block_memory_size=None)
    assert_type(task, CacheTask)
    assert_type(task.synchronize(timeout_in_millis=100), LLMStatusCode)
    assert_type(task.get_results(), list[LLMStatusCode | None])
    assert_type(task.cancel(), None)
    assert_type(task.errors, list[LLMException | None])


def errors(error: LLMException) -> LLMStatusCode:
    assert_type((error.operation, error.cluster_id), tuple[str | None, int | None])
    assert_type(error.request_id, str | None)
    for fault in error.faults:
        assert_type((fault.cache_id, fault.tensor_index), tuple[int | None, int | None])
    raised = LLMException("text", status_code=LLMStatusCode.LLM_FAILED)
    assert_type(Status(raised.status_code).is_ok(), bool)
    assert_type(Status(LLMStatusCode.LLM_SUCCESS).status_code, LLMStatusCode)
    return assert_type(error.status_code, LLMStatusCode)


def with_arrays(manager: CacheManager, tensors: NDArray[np.float32]) -> Cache:
    addrs = [tensor.ctypes.data for tensor in tensors]
    return manager.register_cache(CacheDesc(2, tensors.shape[1:], DataType.DT_FLOAT), addrs)


def mistakes(manager: CacheManager, cache: Cache) -> None:
    LLMDataDist("prompt", 1)  # type: ignore[arg-type]
    manager.pull_blocks("key", cache)  # type: ignore[arg-type]
    manager.pull_blocks(BlocksCacheKey(1), cache, request_id=7)  # type: ignore[arg-type]
    manager.pull_blocks(BlocksCacheKey(1), cache, [0.5], [1])  # type: ignore[list-item]
    manager.pull_cache(BlocksCacheKey(1), cache)  # type: ignore[arg-type]
    manager.push_cache(BlocksCacheKey(1), cache)  # type: ignore[arg-type]
    manager.pull_cache(CacheKey(1, 2), cache, 0, -1, range(1))  # type: ignore[call-arg]
    cache.cache_id = 3  # type: ignore[misc]
    LayerSynchronizer()  # type: ignore[abstract]
