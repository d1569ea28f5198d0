"""Decode side of a first-generation program; usage: decode.py PORT"""

import sys
import time

import numpy as np

from llm_datadist import (
    CacheDesc,
    CacheKey,
    DataType,
    LLMClusterInfo,
    LLMConfig,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
)

PROMPT_CLUSTER_ID = 0
NUM_REQUESTS = 8
BATCH_SIZE = 4

llm_config = LLMConfig()
llm_config.sync_kv_timeout = "5000"
llm_config.ge_options = {"ge.flowGraphMemMaxSize": "16777216"}
datadist = LLMDataDist(LLMRole.DECODER, 0)
datadist.init(llm_config.generate_options())
kv_cache_manager = datadist.kv_cache_manager

cluster = LLMClusterInfo()
cluster.remote_cluster_id = PROMPT_CLUSTER_ID
cluster.append_local_ip_info("127.0.0.1", 0)
cluster.append_remote_ip_info("127.0.0.1", int(sys.argv[1]))
# Both programs start together: the peer is dialed until it listens, for 20 seconds at most.
ret, rets = datadist.link_clusters([cluster], 20000)
if ret != LLMStatusCode.LLM_SUCCESS or rets[0] != LLMStatusCode.LLM_SUCCESS:
    sys.exit(f"cannot link: {rets}; the log says why")


def pull(req_id, cache, batch_index):
    """Pull the cache of a request into a slot; wait until the prefill side has it."""
    while True:
        try:
            kv_cache_manager.pull_cache(CacheKey(PROMPT_CLUSTER_ID, req_id), cache, batch_index)
            return
        except LLMException as error:
            if error.status_code != LLMStatusCode.LLM_KV_CACHE_NOT_EXIST:
                raise
            time.sleep(0.01)


cache = kv_cache_manager.allocate_cache(CacheDesc(8, [BATCH_SIZE, 64, 256], DataType.DT_FLOAT16))
for req_id in range(NUM_REQUESTS):
    batch_index = req_id % BATCH_SIZE
    pull(req_id, cache, batch_index)
    for index in range(8):
        (tensor,) = kv_cache_manager.get_cache_tensors(cache, index)
        assert np.all(tensor.numpy()[batch_index] == np.float16(req_id + index / 8))

datadist.unlink_clusters([cluster])
print(f"decode: {NUM_REQUESTS} requests arrived")
