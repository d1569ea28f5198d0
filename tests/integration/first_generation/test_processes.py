"""Two processes: started together, frozen, ended without finalize (api.md 8)."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from llm_datadist import (
    CacheKey,
    CacheKeyByIdAndIndex,
    LayerSynchronizer,
    LLMRole,
    LLMStatusCode,
    TransferConfig,
)
from llm_datadist.testing import PeerGroup
from support.first_generation import cleared, desc_of, filled, link, started, values
from support.instances import failing
from support.setup import LOOPBACK, TESTS

S = LLMStatusCode


class Ready(LayerSynchronizer):
    def synchronize_layer(self, layer_index, timeout_in_millis):
        return True


def serve(here):
    """Body of a prompt process: a cache under two keys, held by them alone."""
    prompt = started(LLMRole.PROMPT, 1, transfer_backend="tcp")
    keys = [CacheKey(1, 1), CacheKey(1, 2)]
    manager = prompt.kv_cache_manager
    manager.deallocate_cache(filled(manager.allocate_cache(desc_of(), keys), 10))
    kept = filled(manager.allocate_cache(desc_of()), 50)
    here.set_event("ready", [list(prompt.listen_address), kept.tensor_addrs])
    here.wait_end()


@pytest.fixture
def frozen(instance):
    """A decoder linked to a prompt that froze then; the addresses of a cache of the prompt."""
    with PeerGroup() as group:
        peer = group.start(serve)
        address, addrs = group.wait_for("ready")
        decoder = instance(LLMRole.DECODER, 2, transfer_backend="tcp", sync_kv_timeout=200)
        link(decoder, tuple(address))
        peer.freeze()
        yield decoder, addrs, peer
        peer.thaw()


@pytest.mark.slow
@pytest.mark.expects_log("transfer_cache_async: layer 0")
def test_timeouts_have_this_generations_status(frozen):
    """Of pulls, pushes and checks; the link stays usable, and the key is not consumed."""
    decoder, addrs, peer = frozen
    target = cleared(decoder.kv_cache_manager.allocate_cache(desc_of()))
    for key in (CacheKey(1, 1), CacheKeyByIdAndIndex(1, 2)):
        with failing("LLM_WAIT_PROCESS_TIMEOUT", "pull_cache", "sync_kv_timeout", peer=1):
            decoder.kv_cache_manager.pull_cache(key, target)
    task = decoder.kv_cache_manager.transfer_cache_async(
        target, Ready(), [TransferConfig(1, addrs)]
    )
    assert task.synchronize() is S.LLM_WAIT_PROCESS_TIMEOUT
    with failing("LLM_WAIT_PROCESS_TIMEOUT", "check_link_status", peer=1):
        decoder.check_link_status(1)
    peer.thaw()
    decoder.kv_cache_manager.pull_cache(CacheKey(1, 1), target, 3)
    assert values(target)[3] == 10


PROMPT = """
import sys, time
from llm_datadist import *
from support.first_generation import desc_of, filled, options_of
prompt = LLMDataDist(LLMRole.PROMPT, 0)
prompt.init(options_of(LLMRole.PROMPT, listen=sys.argv[1]))
manager = prompt.kv_cache_manager
manager.deallocate_cache(filled(manager.allocate_cache(desc_of(), [CacheKey(0, 1)]), 7))
registry, links = prompt._engine.registry, prompt._engine.links
while registry.named(CacheKey(0, 1)) is not None or links.links():
    time.sleep(0.01)
"""
DECODER = """
import sys
from llm_datadist import *
from support.first_generation import desc_of, options_of, values
from support.setup import info_of
decoder = LLMDataDist(LLMRole.DECODER, 0)
decoder.init(options_of(LLMRole.DECODER))
host, _, port = sys.argv[1].rpartition(":")
peer = info_of((host, int(port)))
overall, (status,) = decoder.link_clusters([peer], 20000)
assert overall == status == LLMStatusCode.LLM_SUCCESS, status
cache = decoder.kv_cache_manager.allocate_cache(desc_of())
decoder.kv_cache_manager.pull_cache(CacheKey(0, 1), cache)
print(values(cache)[0])
decoder.unlink_clusters([peer])
"""


@pytest.mark.slow
def test_both_sides_started_together_and_ended_without_finalize():
    """The decoder first: it links once, and waits for the prompt."""
    with socket.create_server((LOOPBACK, 0)) as sock:
        address = "{}:{}".format(*sock.getsockname())

    def start(program):
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program, address],
            cwd=TESTS,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    with start(DECODER) as decoder, start(PROMPT) as prompt:
        try:
            shown, errors = decoder.communicate(timeout=60)
            assert (decoder.returncode, shown, errors) == (0, "7\n", "")
            shown, errors = prompt.communicate(timeout=60)
            assert (prompt.returncode, shown, errors) == (0, "", "")
        finally:
            for process in (decoder, prompt):
                if process.poll() is None:
                    process.kill()


def test_references_that_a_forked_child_drops(instance):
    """They are the parent's: the child must not end its caches."""
    prompt, decoder = instance(LLMRole.PROMPT, 1), instance(LLMRole.DECODER, 2)
    link(decoder, prompt)
    kept = [filled(prompt.kv_cache_manager.allocate_cache(desc_of()), 3)]
    pid = os.fork()
    if pid == 0:
        kept.clear()
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    target = decoder.kv_cache_manager.allocate_cache(desc_of())
    decoder.kv_cache_manager.pull_cache(CacheKeyByIdAndIndex(1, 1), target)
    assert values(target)[0] == 3
