"""A process that gets no more threads once its instances live: calls say so, or do without.

A limit of address space leaves no room for the stack of another thread.
"""

import json

import pytest

from support.setup import run_program

PRELUDE = """
import json, logging, resource, socket, sys, threading, time
import numpy as np
from llm_datadist import (
    BlocksCacheKey, CacheDesc, DataType, LayerSynchronizer, LLMException, LLMStatusCode,
    TransferConfig, TransferWithCacheKeyConfig,
)
from support.setup import info_of, started

logging.basicConfig(stream=sys.stdout)
threading.stack_size(64 << 20)
BLOCKS = [0, 1, 2, 3]

def made(cluster_id, **properties):
    instance = started(cluster_id, **properties)
    memory = np.full((2, 4, 1 << 18), cluster_id, np.uint8)
    cache = instance.cache_manager.register_blocks_cache(
        CacheDesc(2, [4, 1 << 18], DataType.DT_UINT8),
        [tensor.ctypes.data for tensor in memory],
        BlocksCacheKey(cluster_id),
        True,
    )
    return instance, cache, memory

def link(one, *others):
    return one.link_clusters([info_of(other) for other in others], 5000)

def no_more_threads():
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + (4 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    for _ in range(100):  # the stack of a thread that has ended serves another one
        try:
            threading.Thread(target=threading.Event().wait, daemon=True).start()
        except RuntimeError:
            return
    raise SystemExit("there are threads")

properties = json.loads(sys.argv[1])
first, cache, memory = made(1, **properties)
second, _, there = made(2, **properties)
third, _, far = made(3, **properties)
assert link(first, second, third)[0] is LLMStatusCode.LLM_SUCCESS
"""


TRANSFERS = """
no_more_threads()
first.cache_manager.push_blocks(BlocksCacheKey(2), cache, BLOCKS, BLOCKS)
assert (there == 1).all()
first.cache_manager.pull_blocks(BlocksCacheKey(3), cache, BLOCKS, BLOCKS)
assert (memory == 3).all()
print("moved")
"""

CHECKED = """
no_more_threads()
try:
    first.cache_manager.push_blocks(BlocksCacheKey(2), cache, BLOCKS, BLOCKS)
except LLMException as error:
    print(error)
"""

LAYERS = """
class Last(LayerSynchronizer):
    def synchronize_layer(self, layer_index, timeout_in_millis):
        no_more_threads()
        return True

keys = [TransferWithCacheKeyConfig(BlocksCacheKey(id_), range(1), range(1)) for id_ in (2, 3)]
start = first.cache_manager.transfer_cache_async
task = start(cache, Last(), keys, BLOCKS, BLOCKS)
assert task.synchronize() is LLMStatusCode.LLM_SUCCESS
assert (there == 1).all() and (far == 1).all()
for _ in range(100):  # the first one's thread may still be ending
    no_more_threads()
    try:
        start(cache, Last(), keys, BLOCKS, BLOCKS).synchronize()
    except LLMException as error:
        print(error)
        break
"""

LINKS = """
(fourth, _, _), (fifth, _, _) = made(4), made(5)
no_more_threads()
print(link(fifth, fourth)[0])
first.cache_manager.pull_blocks(BlocksCacheKey(2), cache, BLOCKS, BLOCKS)
print("moved")
"""

DOMAIN = """
with socket.socket() as one, socket.socket() as other:
    for each in (one, other):
        each.bind(("127.0.0.1", 0))
    ports = one.getsockname()[1], other.getsockname()[1]
table = {"server_count": "2", "status": "completed", "version": "1.0", "server_list": [
    {"server_id": str(rank), "device": [
        {"device_id": "0", "device_ip": f"127.0.0.1:{port}", "rank_id": str(rank)}]}
    for rank, port in enumerate(ports)]}
no_more_threads()
for _ in range(2):
    try:
        first.link("domain", {9: 0, 1: 1}, json.dumps(table))
    except LLMException as error:
        print(error)
"""

STARTED = "cannot be started (can't start new thread); raise the limit of threads (ulimit -u"


def run(program, **properties):
    properties["enable_remote_cache_accessible"] = True
    ran = run_program(PRELUDE + program, json.dumps(properties), seconds=120)
    print(ran.stdout)
    assert ran.returncode == 0, ran
    return ran.stdout


@pytest.mark.parametrize("backend", ["host", "tcp"])
def test_transfers_do_without(backend):
    assert run(TRANSFERS, transfer_backend=backend) == "moved\n"


@pytest.mark.parametrize("backend", ["host", "tcp"])
def test_a_check_that_the_peer_has_no_thread_for(backend):
    text = run(CHECKED, transfer_backend=backend, checksum="crc32c")
    assert "has no thread for it, and can have none; raise the limit of threads there" in text


def test_layers_do_without_senders_and_a_task_without_a_thread_is_refused():
    assert STARTED in run(LAYERS)


def test_a_link_is_refused_and_others_go_on():
    text = run(LINKS)
    assert STARTED in text
    assert "LLMStatusCode.LLM_LINK_FAILED\nmoved\n" in text


def test_a_domain_is_refused_and_does_not_stay():
    text = run(DOMAIN)
    assert text.count("link failed [LLM_FAILED]: thread llm-datadist-domains " + STARTED) == 2
