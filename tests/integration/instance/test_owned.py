"""What an instance holds ends with finalize, and what a link holds with its link.

In a process without the cyclic collector, so that nothing is owed to that.
"""

import json

import pytest

from support.authority import Authority
from support.setup import run_program

PROGRAM = """
import gc, json, mmap, os, sys, threading, time
from llm_datadist import BlocksCacheKey, CacheDesc, DataType, LLMStatusCode
from support.setup import info_of, started

SUCCESS = LLMStatusCode.LLM_SUCCESS
way, rounds, properties = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
gc.disable()

def used(one, other):
    # Link them, and move blocks in both directions between caches of their own.
    assert one.link_clusters([info_of(other)], 10000)[0] is SUCCESS
    managers = one.cache_manager, other.cache_manager
    desc = CacheDesc(2, [4, 1024], DataType.DT_UINT8)
    here, there = (
        manager.allocate_blocks_cache(desc, BlocksCacheKey(each.cluster_id))
        for manager, each in zip(managers, (one, other), strict=True)
    )
    managers[0].pull_blocks(BlocksCacheKey(other.cluster_id), here, [0, 1], [2, 3])
    managers[1].push_blocks(BlocksCacheKey(one.cluster_id), there, [0, 1], [2, 3])
    return zip(managers, (here, there), strict=True)

def instances(kept):
    one, other = started(1, **properties), started(2, **properties)
    kept += used(one, other)
    one.finalize()
    other.finalize()

def links(kept):
    if not kept:
        kept += started(1, **properties), started(2, **properties)
    for manager, cache in used(*kept):
        manager.deallocate_blocks_cache(cache)
    assert kept[0].unlink_clusters([info_of(kept[1])], 10000)[0] is SUCCESS

def held():
    # How many descriptors there are, and MiB of address space.
    deadline = time.monotonic() + 2
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    pages = int(open("/proc/self/statm").read().split()[0])
    return len(os.listdir("/proc/self/fd")), pages * mmap.PAGESIZE >> 20

kept = []
repeated = {"instances": instances, "links": links}[way]
for _ in range(3):
    repeated(kept)
threads = threading.active_count() if way == "links" else 1
before = held()
for _ in range(rounds):
    repeated(kept)
print(before, after := held())
assert after[0] <= before[0] + 8, "descriptors are left"
assert after[1] <= before[1] + 200, "address space is left"
"""

POOLS = '{"memory_size": 1048576}'


def run(way, rounds, **properties):
    properties = json.dumps({"mem_pool_cfg": POOLS, **properties})
    ran = run_program(PROGRAM, way, rounds, properties, seconds=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["host", "tcp"])
@pytest.mark.parametrize("way", ["instances", "links"])
def test_nothing_is_left(way, backend):
    run(way, 50, transfer_backend=backend)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["instances", "links"])
def test_nothing_is_left_of_encrypted_lanes(way, tmp_path):
    run(way, 20, tls_lanes=True, transfer_backend="tcp", **Authority(tmp_path).issue())
