import numpy as np

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    DataType,
    LLMClusterInfo,
    LLMConfig,
    LLMDataDist,
    LLMRole,
    LLMStatusCode,
)

config = LLMConfig()
config.enable_cache_manager = True
config.listen_ip_info = "127.0.0.1:0"  # port 0: choose one
options = config.generate_options()
desc = CacheDesc(2, [64, 4096], DataType.DT_FLOAT16)  # two tensors of 64 blocks

with LLMDataDist(LLMRole.PROMPT, 1) as prefill, LLMDataDist(LLMRole.DECODER, 2) as decode:
    prefill.init(options)
    decode.init(options)
    source = np.random.default_rng().random((2, 64, 4096), np.float32).astype(np.float16)
    target = np.zeros_like(source)
    addrs = [[tensor.ctypes.data for tensor in tensors] for tensors in (source, target)]
    prefill.cache_manager.register_blocks_cache(desc, addrs[0], BlocksCacheKey(1))
    cache = decode.cache_manager.register_blocks_cache(desc, addrs[1])

    peer = LLMClusterInfo()
    peer.append_local_ip_info("127.0.0.1", 0)
    peer.append_remote_ip_info(*prefill.listen_address)
    status, _ = decode.link_clusters([peer])
    assert status == LLMStatusCode.LLM_SUCCESS

    decode.cache_manager.pull_blocks(BlocksCacheKey(1), cache, [3, 4, 9], [0, 8, 1])
    assert (target[:, [0, 8, 1]] == source[:, [3, 4, 9]]).all()
