import numpy as np

from llm_datadist import BlocksCacheKey, LLMConfig, LLMDataDist, LLMRole

config = LLMConfig()
config.enable_cache_manager = True
config.listen_ip_info = "127.0.0.1:0"  # port 0: choose one
options = config.generate_options()

source = np.random.default_rng().random((2, 64, 4096), np.float32)  # two tensors of 64 blocks
target = np.zeros_like(source)

with LLMDataDist(LLMRole.PROMPT, 1) as prefill, LLMDataDist(LLMRole.DECODER, 2) as decode:
    prefill.init(options)
    decode.init(options)
    prefill.cache_manager.register_tensors(list(source), BlocksCacheKey(1))
    cache = decode.cache_manager.register_tensors(list(target))
    decode.link_peer(prefill.listen_address)
    decode.cache_manager.pull_blocks(BlocksCacheKey(1), cache, [3, 4, 9], [0, 8, 1])

assert (target[:, [0, 8, 1]] == source[:, [3, 4, 9]]).all()
