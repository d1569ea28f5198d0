"""Threads whose stacks are as small as Python allows."""

import subprocess
import sys

PROGRAM = """
import ctypes, threading
from llm_datadist import (BlocksCacheKey, CacheDesc, DataType, LLMConfig, LLMDataDist, LLMRole)

config = LLMConfig()
config.enable_cache_manager = True
with LLMDataDist(LLMRole.MIX, 1) as instance:
    instance.init(config.generate_options())
    memory = (ctypes.c_uint8 * 131072)(*range(64))
    desc = CacheDesc(1, [2048, 64], DataType.DT_UINT8)
    cache = instance.cache_manager.register_blocks_cache(
        desc, [ctypes.addressof(memory)], BlocksCacheKey(1)
    )
    threading.stack_size(32768)
    call = instance.cache_manager.copy_blocks
    thread = threading.Thread(target=call, args=(cache, {0: list(range(1, 2048, 2))}))
    thread.start()
    thread.join()
    assert bytes(memory[64:128]) == bytes(range(64))
    print("copied")
"""


def test_a_local_copy_needs_little_stack():
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, "copied\n"), ran.stderr
