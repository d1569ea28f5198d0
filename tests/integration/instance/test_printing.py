"""Every public object prints, and shows its fields (api.md 1.1)."""

import pytest

import llm_datadist
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


class Ready(LayerSynchronizer):
    def synchronize_layer(self, layer_index, timeout_in_millis):
        return True


def config():
    made = LLMConfig()
    made.listen_ip_info = "127.0.0.1:26000"
    made.sync_kv_timeout = 77
    made.link_secret = "hush"
    return made


def cluster_info():
    made = LLMClusterInfo()
    made.remote_cluster_id = 12
    made.append_local_ip_info("10.0.0.1", 0)
    made.append_remote_ip_info("10.0.0.2", 26000)
    return made


def failed():
    status = LLMStatusCode.LLM_TIMEOUT
    return LLMException("pull_blocks failed", status_code=status, cluster_id=3)


DESC = CacheDesc(2, [8, 16], DataType.DT_FLOAT16)
#: Class -> an object of it, what its repr shows.
SHOWN = {
    BlocksCacheKey: (BlocksCacheKey(1), ["BlocksCacheKey(cluster_id=1, model_id=0)"]),
    CacheKey: (
        CacheKey(1, 2, 3, 4),
        ["CacheKey(cluster_id=1, req_id=2, model_id=3, prefix_id=4)"],
    ),
    CacheKeyByIdAndIndex: (
        CacheKeyByIdAndIndex(1, 2, 3),
        ["CacheKeyByIdAndIndex(cluster_id=1, cache_id=2, batch_index=3)"],
    ),
    CacheDesc: (DESC, ["CacheDesc(", "num_tensors=2", "shape=[8, 16]", "DT_FLOAT16", "DEVICE"]),
    Cache: (
        Cache.create_cpu_cache(DESC, [4096, 8192]),
        ["Cache(", "cache_id=-1", "0x1000", "0x2000", "is_blocks_cache=False", "DT_FLOAT16"],
    ),
    DataType: (DataType.DT_BF16, ["DT_BF16"]),
    LLMRole: (LLMRole.MIX, ["LLMRole.MIX"]),
    LLMStatusCode: (LLMStatusCode.LLM_TIMEOUT, ["LLMStatusCode.LLM_TIMEOUT"]),
    Memtype: (Memtype.MEM_TYPE_HOST, ["MEM_TYPE_HOST"]),
    Placement: (Placement.HOST, ["HOST"]),
    RegisterMemStatus: (RegisterMemStatus.PREPARING, ["PREPARING"]),
    MemInfo: (
        MemInfo(Memtype.MEM_TYPE_DEVICE, 4096, 512),
        ["MemInfo(", "MEM_TYPE_DEVICE", "0x1000", "512"],
    ),
    Status: (Status(LLMStatusCode.LLM_FAILED), ["Status(LLMStatusCode.LLM_FAILED)"]),
    LLMException: (failed(), ["LLMException(", "pull_blocks failed", "LLMStatusCode.LLM_TIMEOUT"]),
    LLMConfig: (config(), ["127.0.0.1:26000", "77"]),
    LLMClusterInfo: (
        cluster_info(),
        ["LLMClusterInfo(", "remote_cluster_id=12", "10.0.0.1", "10.0.0.2", "26000"],
    ),
    TransferConfig: (
        TransferConfig(5, [16, 32], range(1), 3),
        ["TransferConfig(", "dst_cluster_id=5", "range(0, 1)", "src_batch_index=3"],
    ),
    TransferWithCacheKeyConfig: (
        TransferWithCacheKeyConfig(BlocksCacheKey(6), range(1), range(1, 2)),
        [
            "TransferWithCacheKeyConfig(",
            "BlocksCacheKey(cluster_id=6",
            "range(0, 1)",
            "range(1, 2)",
        ],
    ),
    LayerSynchronizer: (Ready(), ["Ready"]),
    TensorDesc: (
        TensorDesc(DataType.DT_FLOAT, (2, 3)),
        ["TensorDesc(dtype=DataType.DT_FLOAT, shape=[2, 3])"],
    ),
    Tensor: (Tensor([[1, 2]]), ["Tensor(tensor_desc=TensorDesc(", "DT_INT64", "[1, 2]"]),
}
#: Made by an instance only; tested below.
OF_AN_INSTANCE = {LLMDataDist, CacheManager, KvCacheManager, CacheTask}


def test_every_public_class_is_here():
    """api.md checklist 61."""
    public = {getattr(llm_datadist, name) for name in llm_datadist.__all__}
    assert KvCache is Cache
    assert LlmConfig is LLMConfig
    assert public == set(SHOWN) | OF_AN_INSTANCE


@pytest.mark.parametrize(
    ("printed", "parts"), SHOWN.values(), ids=[kind.__name__ for kind in SHOWN]
)
def test_an_object_shows_its_fields(printed, parts):
    """api.md checklist 61."""
    for part in parts:
        assert part in repr(printed)
    assert "\n" not in repr(printed)
    assert str(printed)
    assert f"{printed}" == str(printed)


def test_secrets_are_hidden():
    """api.md checklist 61."""
    assert "hush" not in f"{config()} {config()!r}"


def test_an_instance_shows_what_it_is(options):
    """api.md checklist 61."""
    one = LLMDataDist(LLMRole.PROMPT, 2**64 - 1)
    assert repr(one) == f"LLMDataDist(role=Prompt, cluster_id={2**64 - 1}, not initialized)"
    with one:
        one.init(options())
        assert str(one) == f"LLMDataDist(role=Prompt, cluster_id={2**64 - 1}, initialized)"
        assert repr(one.cache_manager) == f"CacheManager(cluster_id={2**64 - 1})"
    assert "not initialized" in str(one)
    with one:
        one.init(options(enable_cache_manager=False))
        shown = f"KvCacheManager(cluster_id={2**64 - 1}, role=Prompt)"
        assert repr(one.kv_cache_manager) == shown


def test_what_an_instance_makes(pair, blocks):
    """api.md checklist 61."""
    near, far = pair
    cache, _ = blocks(near, 1)
    shown = repr(cache)
    assert "cache_id=1" in shown
    assert "is_blocks_cache=True" in shown
    assert all(hex(addr) in shown for addr in cache.tensor_addrs)
    target = blocks(far, 2).cache
    task = near.cache_manager.transfer_cache_async(
        cache, Ready(), [TransferConfig(2, target.tensor_addrs)], [0], [0]
    )
    assert task.synchronize() is LLMStatusCode.LLM_SUCCESS
    assert repr(task) == "CacheTask(is_complete=True, results=[LLMStatusCode.LLM_SUCCESS])"
