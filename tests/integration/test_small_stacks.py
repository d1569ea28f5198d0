"""Threads whose stacks are as small as Python allows."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys, threading
import numpy as np
from llm_datadist import (
    BlocksCacheKey, CacheDesc, DataType, LayerSynchronizer, LLMClusterInfo, LLMConfig, LLMDataDist,
    LLMRole, LLMStatusCode, MemInfo, Memtype, TransferConfig,
)

backend, checksum, names = sys.argv[1], sys.argv[2], sys.argv[3:]
ODD, EVEN = list(range(1, 2048, 2)), list(range(0, 2048, 2))

def made(cluster_id):
    config = LLMConfig()
    config.enable_cache_manager = True
    config.listen_ip_info = "127.0.0.1:0"
    config.transfer_backend = backend
    config.checksum = checksum
    config.mem_pool_cfg = '{"memory_size": 1048576}'
    instance = LLMDataDist(LLMRole.MIX, cluster_id)
    instance.init(config.generate_options())
    memory = np.full((2, 2048, 64), cluster_id, np.uint8)
    cache = instance.cache_manager.register_blocks_cache(
        CacheDesc(2, [2048, 64], DataType.DT_UINT8),
        [tensor.ctypes.data for tensor in memory],
        BlocksCacheKey(cluster_id),
    )
    return instance, cache, memory

class Ready(LayerSynchronizer):
    def synchronize_layer(self, layer_index, timeout_in_millis):
        return True

one, cache, memory = made(1)
other, _, there = made(2)
manager = one.cache_manager
info = LLMClusterInfo()
info.append_local_ip_info("127.0.0.1", 0)
info.append_remote_ip_info(*other.listen_address)
config = TransferConfig(2, [tensor.ctypes.data for tensor in there])
SUCCESS = LLMStatusCode.LLM_SUCCESS
calls = {
    "init": lambda: made(3)[0].finalize(),
    "link": lambda: one.link_clusters([info], 10000)[0] is SUCCESS,
    "pull": lambda: manager.pull_blocks(BlocksCacheKey(2), cache, ODD, EVEN),
    "push": lambda: manager.push_blocks(BlocksCacheKey(2), cache, ODD, EVEN),
    "copy": lambda: manager.copy_blocks(cache, {0: ODD}),
    "remap": lambda: manager.remap_registered_memory(
        [MemInfo(Memtype.MEM_TYPE_DEVICE, memory.ctypes.data, 64)]
    ),
    "layers": lambda: manager.transfer_cache_async(
        cache, Ready(), [config], ODD, EVEN
    ).synchronize() is SUCCESS,
    "check": lambda: one.check_link_status(2),
    "describe": lambda: bool(one.describe_link(2)),
    "allocate": lambda: bool(
        manager.allocate_blocks_cache(CacheDesc(2, [16, 64], DataType.DT_UINT8))
    ),
    "unlink": lambda: one.unlink_clusters([info], 10000)[0] is SUCCESS,
    "finalize": lambda: one.finalize(),
}

def call():
    for name in names:
        assert calls[name]() in (None, True), name
        print(name)

threading.stack_size(32768)
thread = threading.Thread(target=call)
thread.start()
thread.join()
"""

EVERY = [
    "init",
    "link",
    "check",
    "describe",
    "allocate",
    "pull",
    "push",
    "copy",
    "remap",
    "layers",
    "unlink",
    "finalize",
]


@pytest.mark.parametrize("checksum", ["off", "crc32c"])
@pytest.mark.parametrize(("backend", "names"), [("tcp", EVERY), ("host", EVERY)])
def test_calls_need_little_stack(backend, names, checksum):
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, backend, checksum, *names],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stdout.split()) == (0, names), ran.stderr
