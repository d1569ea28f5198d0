"""Guarantee 3: unregister, deallocate, unlink and finalize are final when they return.

Also when the peer was frozen in the middle of a transfer: it goes on after that, with what it had
begun. The owner has put other bytes into the memory by then: a pull that succeeds has none of them,
and no push changes any. (Checklist items 13, 23, 39.)
"""

import os
import time

import numpy as np
import pytest

from llm_datadist import BlocksCacheKey, CacheDesc, DataType, LLMException, LLMStatusCode
from llm_datadist.testing import PeerGroup
from support.instances import BACKENDS, Side, finalize, link
from support.setup import info_of

TENSORS, BLOCKS, WORDS = 2, 64, 8192  # 8 MiB
DESC = CacheDesc(TENSORS, [BLOCKS, WORDS], DataType.DT_UINT64)
OURS, THEIRS, POISON = 11, 22, 33
OWNER_MS, PEER_MS, UNLINK_MS = 500, 5000, 300
SLACK_S = 1.0
ROUNDS = 10 if os.environ.get("LDD_LONG") else 1
QUIET_S = 0.15
#: What the peer's call may come to when it goes on.
ENDS = {"LLM_KV_CACHE_NOT_EXIST", "LLM_LINK_FAILED", "LLM_NOT_YET_LINK", "LLM_TIMEOUT"}


def hammer(member, backend, operation):
    """Body of the peer: pull or push all blocks until a call fails; then say how it came out."""
    side = Side(2, backend, listen=False, sync_kv_timeout=PEER_MS)
    held = side.blocks(data=np.full((TENSORS, BLOCKS, WORDS), THEIRS, np.uint64))
    call = getattr(side.manager, f"{operation}_blocks")
    every = list(range(BLOCKS))
    while (address := member.receive()) is not None:
        link(side.instance, tuple(address))
        foreign, status = 0, ""
        member.send("begun")
        while not status:
            if operation == "pull":
                held.data[:] = 0
            try:
                call(BlocksCacheKey(1), held.cache, every, every)
                foreign += operation == "pull" and int((held.data != OURS).sum())
            except LLMException as error:
                status = error.status_code.name
        member.send([status, foreign])
    finalize(side)


class Owner:
    """Registers or allocates, and ends it in each of the ways."""

    def __init__(self, backend, way):
        self.way = way
        self.side = Side(1, backend, pool=16 << 20, sync_kv_timeout=OWNER_MS)
        self.manager = self.side.manager
        self.allocated = way == "deallocate"
        key = BlocksCacheKey(1)
        if self.allocated:
            self.cache = self.manager.allocate_blocks_cache(DESC, key)
            self.memory = [self.cache.tensor(index) for index in range(TENSORS)]
        else:
            self.memory = np.empty((TENSORS, BLOCKS, WORDS), np.uint64)
            addrs = [tensor.ctypes.data for tensor in self.memory]
            self.cache = self.manager.register_blocks_cache(DESC, addrs, key)
        self.fill(OURS)

    def fill(self, value):
        for tensor in self.memory:
            tensor[:] = value

    def holds(self, value):
        return all((tensor == value).all() for tensor in self.memory)

    def end(self):
        """Return how long it took."""
        began = time.monotonic()
        if self.way == "unregister":
            self.manager.unregister_cache(self.cache.cache_id)
        elif self.way == "deallocate":
            self.manager.deallocate_blocks_cache(self.cache)
        elif self.way == "finalize":
            self.side.instance.finalize()
        else:
            force = self.way == "unlink by force"
            info = info_of(cluster_id=2)
            overall, _ = self.side.instance.unlink_clusters([info], UNLINK_MS, force)
            status = "LLM_SUCCESS" if force else "LLM_NOTIFY_PROMPT_UNLINK_FAILED"
            assert overall is getattr(LLMStatusCode, status)
        return time.monotonic() - began

    def take_back(self):
        """Put other bytes in, in the pool as the next cache that is given these pages."""
        if self.allocated:
            self.cache = self.manager.allocate_blocks_cache(DESC)
            again = [self.cache.tensor(index) for index in range(TENSORS)]
            addrs = [tensor.ctypes.data for tensor in self.memory]
            assert [tensor.ctypes.data for tensor in again] == addrs
            self.memory = again
        self.fill(POISON)

    def close(self):
        self.manager = self.cache = self.memory = None
        finalize(self.side)


WAYS = ["unregister", "deallocate", "unlink", "unlink by force", "finalize"]


@pytest.mark.slow
@pytest.mark.timeout(60 * ROUNDS)
@pytest.mark.expects_log("unlink_clusters: clusters")
@pytest.mark.parametrize("operation", ["pull", "push"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_final_though_the_peer_was_frozen_within_a_transfer(backend, operation):
    """Each of the ways, at several moments of the transfer."""
    with PeerGroup(timeout_s=30) as group:
        peer = group.start(hammer, backend, operation)
        for number, way in enumerate(WAYS * ROUNDS):
            owner = Owner(backend, way)
            try:
                peer.send(list(owner.side.address))
                assert peer.receive() == "begun"
                time.sleep(0.03 + 0.0007 * number)
                peer.freeze()
                took = owner.end()
                assert took < OWNER_MS / 1000 + SLACK_S, (way, took)
                owner.take_back()
                time.sleep(0.02)
                peer.thaw()
                status, foreign = peer.receive()
                assert status in ENDS, (way, status)
                assert not foreign, f"{way}: a pull brought {foreign} words of what came later"
                deadline = time.monotonic() + QUIET_S
                while time.monotonic() < deadline:
                    assert owner.holds(POISON), f"{way}: a push landed when it had returned"
                    time.sleep(0.01)
            finally:
                peer.thaw()
                owner.close()
        peer.send(None)
