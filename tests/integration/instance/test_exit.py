"""Ends of processes that have not finalized, and forked children (api.md 4.3)."""

import os
import textwrap
import time

import pytest

from llm_datadist import BlocksCacheKey, LLMException, LLMStatusCode
from support.setup import run_program

S = LLMStatusCode

PROLOGUE = """
import os, sys, threading, time
import numpy as np
from llm_datadist import *
from support.setup import info_of, options_of, started

def initialized(cluster_id):
    return started(cluster_id, enable_remote_cache_accessible=True, sync_kv_timeout=60_000)

def linked(cluster_id=9):
    instance = initialized(cluster_id)
    info = info_of((sys.argv[1], int(sys.argv[2])))
    assert instance.link_clusters([info])[0] == LLMStatusCode.LLM_SUCCESS
    return instance

def registered(instance, value):
    data = np.full((2, 8, 256), value, np.float32)
    cache = instance.cache_manager.register_blocks_cache(
        CacheDesc(2, [8, 256], DataType.DT_FLOAT), [t.ctypes.data for t in data]
    )
    return cache, data
"""


def run(program, address=("127.0.0.1", 1), seconds=20):
    """Run a program to its end; return (exit status, stdout, stderr)."""
    done = run_program(PROLOGUE + textwrap.dedent(program), *address, seconds=seconds)
    return done.returncode, done.stdout, done.stderr


def is_linked(one, cluster_id):
    try:
        one.describe_link(cluster_id)
    except LLMException:
        return False
    return True


ENDS = {
    "of the main module": "instance = linked()",
    "without a reference": "linked()",
    "by sys.exit": "instance = linked(); sys.exit(0)",
    "in a block": "with linked(): sys.exit(0)",
    "with several": "several = [linked(9), linked(10), initialized(11)]",
    "with a self link": """
        instance = linked()
        assert instance.link_clusters([info_of(instance)])[0] == LLMStatusCode.LLM_SUCCESS
    """,
    "with a domain": """
        instance = linked()
        instance.link("a", {9: 0, 12: 1}, '{"version": "1.0", "server_list": []}')
    """,
    "while threads pull": """
        instance = linked()
        cache, data = registered(instance, 0)
        def pull():
            while True:
                instance.cache_manager.pull_blocks(BlocksCacheKey(1), cache, [0], [0])
        threading.excepthook = lambda args: None
        for _ in range(4):
            threading.Thread(target=pull, daemon=True).start()
        time.sleep(0.1)
    """,
    "while a layer is waited for": """
        instance = linked()
        cache, data = registered(instance, 0)
        class Never(LayerSynchronizer):
            def synchronize_layer(self, layer_index, timeout_in_millis):
                threading.Event().wait()
        config = TransferWithCacheKeyConfig(BlocksCacheKey(1), range(1), range(1))
        instance.cache_manager.transfer_cache_async(cache, Never(), [config, config], [0], [0])
        time.sleep(0.1)
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize("program", ENDS.values(), ids=ENDS)
def test_an_instance_is_finalized_at_exit(instance, blocks, eventually, program):
    """api.md checklist 13. A peer that just died would be a warning in the log here."""
    near = instance(1)
    blocks(near, 1)
    assert run(program, near.listen_address) == (0, "", "")
    eventually(lambda: not is_linked(near, 9), 1)


@pytest.mark.slow
def test_an_uncaught_exception_is_all_that_is_printed(instance, eventually):
    """api.md checklist 13."""
    near = instance(1)
    status, _, printed = run("instance = linked(); 1 / 0", near.listen_address)
    assert status == 1
    assert printed.count("Traceback") == 1
    assert printed.endswith("ZeroDivisionError: division by zero\n")
    eventually(lambda: not is_linked(near, 9), 1)


@pytest.mark.slow
def test_a_frozen_peer_does_not_hold_the_exit_up(remote, black_hole):
    """api.md checklist 13."""
    peer = remote(1)
    program = """
        instance = linked()
        print(time.time(), flush=True)
        os.kill(int(os.environ["FROZEN"]), 19)
        threading.Thread(target=instance.check_link_status, args=(1,), daemon=True).start()
        threading.excepthook = lambda args: None
        time.sleep(0.1)
        print(time.time(), flush=True)
    """
    os.environ["FROZEN"] = str(peer.peer.pid)
    try:
        status, printed, errors = run(program, peer.listen_address)
    finally:
        del os.environ["FROZEN"]
    assert (status, errors) == (0, "")
    assert time.time() - float(printed.split()[-1]) < 3
    peer.peer.thaw()


@pytest.mark.slow
def test_a_forked_child_leaves_its_parents_instance_alone(instance, blocks):
    """api.md checklist 13, 14."""
    near = instance(1)
    blocks(near, 1)
    program = """
        instance = linked()
        cache, data = registered(instance, 0)
        manager = instance.cache_manager
        pid = os.fork()
        if pid == 0:
            assert LLMDataDist.llm_engine_instance is None
            for call in (manager.unregister_cache, instance.check_link_status):
                try:
                    call(1)
                except RuntimeError as error:
                    assert "not initialized" in str(error), error
                else:
                    os._exit(7)
            instance.finalize()
            own = linked(10)
            mine, found = registered(own, 0)
            own.cache_manager.pull_blocks(BlocksCacheKey(1), mine, [0], [5])
            assert found[0, 5, 0] == 1
            instance.init(options_of(listen=None))
            assert instance.cache_manager is not manager
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        instance.check_link_status(1)
        manager.pull_blocks(BlocksCacheKey(1), cache, [0], [5])
        assert data[0, 5, 0] == 1
        instance.finalize()
    """
    assert run(program, near.listen_address) == (0, "", "")


@pytest.mark.slow
def test_the_peer_of_an_ended_process_can_be_replaced(instance, blocks, failure):
    """api.md checklist 13, 21."""
    near = instance(1)
    blocks(near, 1)
    program = """
        instance = linked()
        cache, data = registered(instance, 0)
        instance.cache_manager.pull_blocks(BlocksCacheKey(1), cache, [0], [0])
    """
    cache = blocks(near, 0, BlocksCacheKey(1, 1)).cache
    for _ in range(2):
        assert run(program, near.listen_address) == (0, "", "")
        error = failure(near.cache_manager.pull_blocks, BlocksCacheKey(9), cache, [0], [0])
        assert error.status_code is S.LLM_NOT_YET_LINK
