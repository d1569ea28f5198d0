"""Threads whose stacks are as small as Python allows."""

import pytest

from support.setup import run_program

PROGRAM = """
import sys, threading
import numpy as np
from llm_datadist import (
    BlocksCacheKey, CacheDesc, DataType, LayerSynchronizer, LLMStatusCode, MemInfo, Memtype,
    TransferConfig,
)
from support.setup import info_of, started

backend, checksum, names = sys.argv[1], sys.argv[2], sys.argv[3:]
ODD, EVEN = list(range(1, 2048, 2)), list(range(0, 2048, 2))

def made(cluster_id):
    properties = {"transfer_backend": backend, "checksum": checksum}
    instance = started(cluster_id, mem_pool_cfg='{"memory_size": 1048576}', **properties)
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
info = info_of(other)
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
    ran = run_program(PROGRAM, backend, checksum, *names)
    assert (ran.returncode, ran.stdout.split()) == (0, names), ran.stderr
