"""Prefill side of a first-generation program; usage: prefill.py PORT"""

import sys
import time

from llm_datadist import (
    CacheDesc,
    CacheKey,
    DataType,
    LLMConfig,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
)

CLUSTER_ID = DECODE_CLUSTER_ID = 0
POOL_SIZE = 1 << 20
NUM_REQUESTS = 8

llm_config = LLMConfig()
llm_config.listen_ip_info = f"127.0.0.1:{sys.argv[1]}"
llm_config.ge_options = {"ge.flowGraphMemMaxSize": str(POOL_SIZE)}
llm_config.mem_utilization = 1.0
datadist = LLMDataDist(LLMRole.PROMPT, CLUSTER_ID)
datadist.init(llm_config.generate_options())
kv_cache_manager = datadist.kv_cache_manager


def allocate(cache_desc, cache_keys=()):
    """Allocate a cache; wait while the pool is full, until pulls have freed enough."""
    while True:
        try:
            return kv_cache_manager.allocate_cache(cache_desc, cache_keys)
        except LLMException as error:
            if error.status_code != LLMStatusCode.LLM_DEVICE_OUT_OF_MEMORY:
                raise
            time.sleep(0.01)


# 4 layers, a key and a value tensor each: 8 tensors of 1 sequence x 64 tokens x 256 numbers. The
# cache of a request takes a quarter of the pool.
desc = CacheDesc(8, [1, 64, 256], DataType.DT_FLOAT16)
for req_id in range(NUM_REQUESTS):
    cache = allocate(desc, [CacheKey(CLUSTER_ID, req_id)])
    for index in range(desc.num_tensors):
        (tensor,) = kv_cache_manager.get_cache_tensors(cache, index)
        tensor.numpy()[:] = req_id + index / 8  # the model computes here
    kv_cache_manager.deallocate_cache(cache)  # the key keeps the memory until it is pulled

whole_pool = CacheDesc(1, [1, POOL_SIZE], DataType.DT_INT8)
allocate(whole_pool)  # possible as soon as everything was pulled
print(f"prefill: {NUM_REQUESTS} requests were pulled")

while True:  # until the decode side has unlinked
    try:
        datadist.check_link_status(DECODE_CLUSTER_ID)
    except LLMException:
        break
    time.sleep(0.01)
