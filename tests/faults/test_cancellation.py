"""A canceled wait of llm_datadist.aio stops the transfer, also with a peer that is frozen."""

import asyncio
import time

import numpy as np
import pytest

from llm_datadist import BlocksCacheKey, LLMConfig
from llm_datadist.aio import Node
from llm_datadist.testing import PeerGroup
from support.instances import Side, finalize

PROMPT_S = 2.0  # 0.1 s on a quiet machine
WORDS = 1 << 17

pytestmark = [pytest.mark.slow, pytest.mark.expects_log("lane", "lost")]


def hold(member, backend):
    """Body of a peer that is frozen: a cache, and whether it changes."""
    side = Side(1, backend, peer_timeout_ms=120_000)
    held = side.blocks(1, key=7, words=WORDS)
    member.send(list(side.address))
    while member.receive(60) is not None:
        before = held.data.copy()
        time.sleep(0.3)
        member.send(bool((before == held.data).all()))
    finalize(side)


@pytest.mark.parametrize(("backend", "call"), [("tcp", "pull"), ("host", "push")])
def test_a_canceled_transfer_is_quiet_when_the_wait_ends(backend, call):
    """The peer is frozen, so that the transfer cannot go on; sync_kv_timeout is 20 s."""
    with PeerGroup(timeout_s=60) as group:
        peer = group.start(hold, backend)
        address = peer.receive()
        asyncio.run(cancel_one(peer, address, backend, call))
        peer.send(None)
        peer.wait()


async def cancel_one(frozen, address, backend, call):
    config = LLMConfig()
    config.transfer_backend, config.sync_kv_timeout, config.peer_timeout_ms = (
        backend,
        20_000,
        120_000,
    )
    node = Node("decode", config=config)
    data = np.zeros((4, 8, WORDS), np.uint64)
    node.register("kv", list(data))
    peer = await node.connect(":".join(map(str, address)))
    key = BlocksCacheKey(1, 7)
    manager, cache = node.instance.cache_manager, node.instance.cache_manager.caches()[0]
    every = list(range(8))
    transfer = {
        "pull": lambda: manager.pull_blocks(key, cache, every, every),
        "push": lambda: manager.push_blocks(key, cache, every, every),
    }[call]
    await peer._calls.transfer(transfer)
    frozen.freeze()
    waiting = asyncio.create_task(peer._calls.transfer(transfer))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    begun = time.monotonic()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert time.monotonic() - begun < PROMPT_S
    before = data.copy()
    frozen.thaw()
    frozen.send("quiet?")
    assert await asyncio.get_running_loop().run_in_executor(None, frozen.receive)
    assert (before == data).all()
    await node.close()
