"""A linked peer whose NIXL metadata is wrong in one place crashes no process.

In a network of its own that is nothing but loopback: a changed address is one that UCX dials.
"""

import random
import time

import msgspec
import pytest

from llm_datadist import LLMException, LLMStatusCode
from llm_datadist.testing import PeerGroup
from support.hosts import unavailable
from support.instances import Side, finalize, link
from support.nixl_backends import NEEDS_NIXL, wait_for_trial
from support.setup import info_of

BIG = {"tensors": 2, "units": 64, "words": 2048}  # 2 MiB: more than what goes over lanes
EVERY = list(range(64))
LOOPBACK = ("unshare", "-n", "sh", "-c", 'ip link set lo up; exec "$@"', "sh")
CONNECTION, LANDING = 2, 9  # fields of NixlMetadata

pytestmark = [pytest.mark.netns, pytest.mark.slow, NEEDS_NIXL, pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def _namespaces():
    if reason := unavailable():
        pytest.skip(reason)


def damaged(blob, chance, count):
    """Yield blobs that are cut off or have a byte changed; the last one is the blob itself."""
    address = blob.index(b"|c") + 10 if b"|c" in blob else blob.index(b"nixlSDList")
    yield blob[:address] + bytes([blob[address] ^ 0xFF]) + blob[address + 1 :]
    for _ in range(count):
        at = chance.randrange(address, len(blob))
        yield blob[:at] + bytes([chance.randrange(256)]) + blob[at + 1 :]
        yield blob[: chance.randrange(len(blob))]
    yield blob


def backend_of(side):
    (backend,) = side.instance._engine.backends
    return backend


def said_at_links(member, field, seed):
    """A body: link to a peer that lies, again and again, and at last to the same that does not."""
    liar, victim = Side(1, "nixl"), Side(2, "nixl", listen=False, sync_kv_timeout=20_000)
    source, target = liar.blocks(seed=3, key=0, **BIG), victim.blocks(**BIG)
    backend = backend_of(liar)
    honest = backend.describe
    blob = msgspec.msgpack.decode(honest(10**9))[field]
    outcomes = []
    for told in damaged(blob, random.Random(seed), 6):

        def describe(link_id, told=told):
            fields = msgspec.msgpack.decode(honest(link_id))
            fields[field] = blob if told == blob else told
            return msgspec.msgpack.encode(fields)

        backend.describe = honest if told == blob else describe
        wait_for_trial(victim.instance._engine.backends)
        overall, _ = victim.instance.link_clusters([info_of(liar.address)], 20000)
        if overall is LLMStatusCode.LLM_SUCCESS:
            target.data[:] = 0
            try:
                victim.manager.pull_blocks(liar.blocks_key(), target.cache, EVERY, EVERY)
                outcomes.append("right" if (target.data == source.data).all() else "wrong")
            except LLMException as error:
                outcomes.append(error.status_code.name)
            victim.instance.unlink_clusters([info_of(liar.address, 1)])
        else:
            outcomes.append(overall.name)
    finalize(liar, victim)
    member.send(outcomes)


def said_of_regions(member, seed):
    """A body: pull caches whose regions are wrong, and at last one whose region is not."""
    liar, victim = Side(1, "nixl"), Side(2, "nixl", listen=False, sync_kv_timeout=20_000)
    agent = backend_of(liar).agent
    honest = agent.region_metadata
    target = victim.blocks(**BIG)
    sample = liar.blocks(**BIG)
    (known,) = backend_of(liar).memory._regions.values()
    blob = honest(known.rows, "DRAM")
    liar.manager.unregister_cache(sample.id)
    link(victim.instance, liar.address)
    outcomes = []
    for number, told in enumerate(damaged(blob, random.Random(seed), 6)):
        agent.region_metadata = honest if told == blob else lambda *_, told=told: told
        source = liar.blocks(seed=number + 1, key=number, **BIG)
        wait_for_trial(victim.instance._engine.backends)
        victim.manager.pull_blocks(liar.blocks_key(number), target.cache, EVERY, EVERY)
        outcomes.append("right" if (target.data == source.data).all() else "wrong")
    until = time.monotonic() + 30  # a region that was tried together with a lie is refused, too
    while not (moved := victim.instance.describe_link(1)["channel"]["transfers"]):
        if time.monotonic() > until:
            break
        number += 1
        liar.manager.unregister_cache(source.id)
        source = liar.blocks(seed=number + 1, key=number, **BIG)
        wait_for_trial(victim.instance._engine.backends)
        victim.manager.pull_blocks(liar.blocks_key(number), target.cache, EVERY, EVERY)
    finalize(liar, victim)
    member.send([*outcomes, moved])


@pytest.mark.parametrize("field", [CONNECTION, LANDING])
@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_said_when_a_link_is_made(monkeypatch, field, seed):
    quiet(monkeypatch)
    with PeerGroup(timeout_s=240) as group:
        peer = group.start(said_at_links, field, seed, command_prefix=LOOPBACK)
        outcomes = peer.receive()
    assert outcomes[-1] == "right", "the same peer, when it is honest"
    assert set(outcomes) <= {"right", "LLM_LINK_FAILED", "LLM_TIMEOUT"}, outcomes
    assert outcomes[0] == "LLM_LINK_FAILED", "an address that ends the process that loads it"
    assert outcomes.count("LLM_LINK_FAILED") >= 6, "what is cut off"


@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_said_of_regions(monkeypatch, seed):
    quiet(monkeypatch)
    with PeerGroup(timeout_s=240) as group:
        peer = group.start(said_of_regions, seed, command_prefix=LOOPBACK)
        *outcomes, transfers = peer.receive()
    assert set(outcomes) == {"right"}, outcomes
    assert transfers >= 1, "the honest one goes by NIXL"


def quiet(monkeypatch):
    monkeypatch.setenv("UCX_LOG_LEVEL", "fatal")
    monkeypatch.setenv("NIXL_LOG_LEVEL", "FATAL")
