"""Caches in memory of a GPU between instances of one host: mapped, and copied in streams."""

import time

import numpy as np
import pytest

from llm_datadist import _native
from llm_datadist._plan import Plan
from support.gpu_caches import EVERY, ORDER, SHAPE, OnGpu, cache_on
from support.instances import failing, pattern, zeros

pytestmark = pytest.mark.gpu

WHERE = [("gpu", "gpu"), ("gpu", "host"), ("host", "gpu")]


@pytest.fixture
def sides(make):
    return make("host", device="cuda")


@pytest.mark.parametrize(("remote", "local"), WHERE)
def test_pull(sides, gpu, remote, local):
    owner, user = sides
    source = cache_on(remote, owner, gpu, seed=3, key=0)
    target = cache_on(local, user, gpu)
    user.manager.pull_blocks(owner.blocks_key(), target.cache, EVERY, ORDER)
    assert (target.data[:, ORDER] == source.data).all()
    facts = user.instance.describe_link(1)
    assert facts["backend"] == {"host": "host", "device": "cuda"}
    assert facts["device_channel"]["pulls"] == 1


@pytest.mark.parametrize(("local", "remote"), WHERE)
def test_push(sides, gpu, local, remote):
    owner, user = sides
    target = cache_on(remote, owner, gpu, key=0)
    source = cache_on(local, user, gpu, seed=4)
    user.manager.push_blocks(owner.blocks_key(), source.cache, ORDER, EVERY)
    assert (target.data == source.data[:, ORDER]).all()


def test_one_block(sides, gpu):
    owner, user = sides
    source, target = OnGpu(owner, gpu, seed=5, key=0), OnGpu(user, gpu)
    user.manager.pull_blocks(owner.blocks_key(), target.cache, [7], [9])
    expected = zeros(*SHAPE)
    expected[:, 9] = source.data[:, 7]
    assert (target.data == expected).all()


def test_an_unregistered_cache_is_gone(sides, gpu):
    owner, user = sides
    source, target = OnGpu(owner, gpu, seed=6, key=0), OnGpu(user, gpu)
    user.manager.pull_blocks(owner.blocks_key(), target.cache, EVERY, EVERY)
    owner.manager.unregister_cache(source.cache.cache_id)
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_blocks", peer=1):
        user.manager.pull_blocks(owner.blocks_key(), target.cache, EVERY, ORDER)
    assert (target.data == pattern(SHAPE, 6)).all()


def test_a_push_to_bare_addresses(sides, gpu):
    """The initiator does not know whose memory it is; the owner's threads do."""
    owner, user = sides
    target, source = OnGpu(owner, gpu, seed=3), user.blocks(seed=1)
    engine = user.instance._engine
    local = engine.registry.find("test", source.cache)
    addresses = np.array([target.addresses[0]], np.uint64)
    plan = Plan.of(local.layout.addrs[:1].copy(), addresses, np.array([1024], np.uint64), 1024)
    engine.transfers.push_raw("push", 1, local, plan, None)
    assert (target.data[0].ravel()[:128] == source.data[0].ravel()[:128]).all()
    assert (target.data[0].ravel()[128:] == pattern(SHAPE, 3)[0].ravel()[128:]).all()


def test_only_the_driver_reads_it(sides, gpu, stand_in):
    """Otherwise the tests above would prove nothing. Whether a CPU reads a real GPU is open."""
    (owner, _) = sides
    source = OnGpu(owner, gpu, seed=3)
    words = np.array([source.addresses[0]], np.uint64), np.array([8], np.uint64)
    assert _native.probe(*words, time.monotonic_ns() + 10**9) == b"\0"
