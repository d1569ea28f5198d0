"""Two processes of one user without privileges; the owner then forbids others to read its memory.

Run as `lost_permission.py`: starts itself as the owner. Prints what describe_link says after.
"""

import ctypes
import json
import subprocess
import sys

import numpy as np

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    DataType,
    LLMClusterInfo,
    LLMConfig,
    LLMDataDist,
    LLMRole,
)

PR_SET_DUMPABLE = 4
CAP_SYS_PTRACE = 19
CAPABILITY_VERSION = 0x20080522
LIBC = ctypes.CDLL(None, use_errno=True)
SHAPE = (1, 8, 512)


def instance(cluster_id, data):
    config = LLMConfig()
    config.enable_cache_manager = True
    config.listen_ip_info = "127.0.0.1:0"
    made = LLMDataDist(LLMRole.MIX, cluster_id)
    made.init(config.generate_options())
    desc = CacheDesc(1, list(SHAPE[1:]), DataType.DT_UINT64)
    key = BlocksCacheKey(cluster_id)
    cache = made.cache_manager.register_blocks_cache(desc, [data.ctypes.data], key)
    return made, cache


def owner():
    data = np.full(SHAPE, 7, np.uint64)
    made, _ = instance(1, data)
    print(json.dumps(made.listen_address), flush=True)
    for line in sys.stdin:
        if line.strip() == "forbid":
            print(LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), flush=True)
    made.finalize()


def reader():
    child = subprocess.Popen(
        [sys.executable, __file__, "owner"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    address = json.loads(child.stdout.readline())
    data = np.zeros(SHAPE, np.uint64)
    made, cache = instance(2, data)
    info = LLMClusterInfo()
    info.append_local_ip_info("127.0.0.1", 0)
    info.append_remote_ip_info(*address)
    made.link_clusters([info], 10000)
    every = list(range(8))
    before = made.describe_link(1)["channel"]
    told = []
    for _ in range(2):
        data[:] = 0
        made.cache_manager.pull_blocks(BlocksCacheKey(1), cache, every, every)
        told.append(bool((data == 7).all()))
        child.stdin.write("forbid\n")
        child.stdin.flush()
        assert child.stdout.readline().strip() == "0"
    made.cache_manager.push_blocks(BlocksCacheKey(1), cache, every, every)
    after = made.describe_link(1)["channel"]
    made.finalize()
    child.communicate()
    print(json.dumps({"pulled": told, "before": before, "after": after}))


def give_up_privileges():
    """Without this capability root reads no more of others than they allow."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 of each
    assert LIBC.capget(header, sets) == 0
    for i in range(3):
        sets[i] &= ~(1 << CAP_SYS_PTRACE)
    assert LIBC.capset(header, sets) == 0
    assert LIBC.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0


if __name__ == "__main__":
    give_up_privileges()
    owner() if len(sys.argv) > 1 else reader()
