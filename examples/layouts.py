"""Unequal layouts: two prefill ranks with half of the heads each fill the cache of one decode rank.

Prefill has tensor-parallel size 2, blocks of 16 tokens, and tokens before heads (NHD); decode has
size 1, blocks of 64 tokens, and heads before tokens (HND). All three instances are in one process
to keep the example short.
"""

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
from llm_datadist.layouts import dense, heads_of_rank

LAYERS, HEADS, HEAD_SIZE, TOKENS = 4, 8, 32, 100


def instance(role, cluster_id, listen=None):
    config = LLMConfig()
    config.enable_cache_manager = True
    if listen is not None:
        config.listen_ip_info = listen
    made = LLMDataDist(role, cluster_id)
    made.init(config.generate_options())
    return made


def register(manager, axes, shape, block_tokens, heads, key=None):
    """Register zeros as a cache; return them with the Cache: K and V have a tensor each."""
    memory = np.zeros((LAYERS * 2, *shape), np.float16)
    layout = dense(
        axes,
        layers=range(LAYERS),
        kv_heads=HEADS,
        heads=heads,
        head_size=HEAD_SIZE,
        data_type=DataType.DT_FLOAT16,
        block_tokens=block_tokens,
    )
    desc = CacheDesc(len(memory), list(shape), DataType.DT_FLOAT16)
    addrs = [tensor.ctypes.data for tensor in memory]
    return memory, manager.register_blocks_cache(desc, addrs, key, layout=layout)


prefill = [instance(LLMRole.PROMPT, 1 + rank, "127.0.0.1:0") for rank in range(2)]
decode = instance(LLMRole.DECODER, 3)
with prefill[0], prefill[1], decode:
    kv = np.random.default_rng(1).random((LAYERS * 2, TOKENS, HEADS, HEAD_SIZE))
    kv = kv.astype(np.float16)  # what the model computes: (tensor, token, head, element)

    # Prefill: each rank has its heads of every token, in blocks 3, 4, ... 9 of its cache.
    src_blocks = list(range(3, 10))
    keys, kept = [], []
    for rank, own in enumerate(prefill):
        heads = heads_of_rank(HEADS, 2, rank)
        keys.append(BlocksCacheKey(1 + rank))
        shape = (32, 16, len(heads), HEAD_SIZE)
        memory, _ = register(own.cache_manager, "NHD", shape, 16, heads, keys[-1])
        kept.append(memory)  # registered memory must stay
        rows = memory.reshape(LAYERS * 2, 32 * 16, len(heads), HEAD_SIZE)
        rows[:, 48 : 48 + TOKENS] = kv[:, :, heads.start : heads.stop]

    peers = []
    for own in prefill:
        peer = LLMClusterInfo()
        peer.append_local_ip_info("127.0.0.1", 0)
        peer.append_remote_ip_info(*own.listen_address)
        peers.append(peer)
    assert decode.link_clusters(peers)[0] == LLMStatusCode.LLM_SUCCESS

    # Decode: one call moves both halves, at the same time, each row to its place.
    shape = (8, HEADS, 64, HEAD_SIZE)
    memory, cache = register(decode.cache_manager, "HND", shape, 64, range(HEADS))
    decode.cache_manager.pull_resharded(keys, cache, [src_blocks] * 2, [5, 2], TOKENS)

    by_token = memory[:, [5, 2]].transpose(0, 1, 3, 2, 4).reshape(LAYERS * 2, 128, HEADS, HEAD_SIZE)
    assert (by_token[:, :TOKENS] == kv).all()
    print(f"{TOKENS} tokens of {HEADS} heads arrived from 2 ranks")
