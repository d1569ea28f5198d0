"""Caches in a GPU's memory: found out by their addresses, moved by NIXL and the GPU's driver."""

import numpy as np
import pytest

from llm_datadist import CacheDesc, DataType, Placement
from support.gpu_caches import EVERY, ORDER, SHAPE, TENSORS, UNITS, WORDS, OnGpu, cache_on
from support.instances import failing, pattern, zeros
from support.nixl_backends import NEEDS_NIXL

pytestmark = [NEEDS_NIXL, pytest.mark.gpu]

WHERE = [("gpu", "gpu"), ("gpu", "host"), ("host", "gpu")]


@pytest.mark.parametrize(("remote", "local"), WHERE)
def test_pull(make, gpu, remote, local):
    owner, user = make()
    source = cache_on(remote, owner, gpu, seed=3, key=0)
    target = cache_on(local, user, gpu)
    user.manager.pull_blocks(owner.blocks_key(), target.cache, EVERY, ORDER)
    assert (target.data[:, ORDER] == source.data).all()
    facts = user.instance.describe_link(1)["channel"]
    assert (facts["transfers"], facts["over_lanes"]) == (1, 0)


@pytest.mark.parametrize(("local", "remote"), WHERE)
def test_push(make, gpu, local, remote):
    owner, user = make()
    target = cache_on(remote, owner, gpu, key=0)
    source = cache_on(local, user, gpu, seed=4)
    user.manager.push_blocks(owner.blocks_key(), source.cache, ORDER, EVERY)
    assert (target.data == source.data[:, ORDER]).all()


def test_neighbors_in_two_allocations_are_not_moved_as_one(make, gpu):
    """A plan makes them one; no copy of a GPU goes beyond an allocation."""
    owner, user = make()
    source, target = OnGpu(owner, gpu, seed=3, key=0), OnGpu(user, gpu)
    user.manager.pull_blocks(owner.blocks_key(), target.cache, EVERY, EVERY)
    assert (target.data == source.data).all()
    target.data = pattern(SHAPE, 4)
    user.manager.push_blocks(owner.blocks_key(), target.cache, EVERY, EVERY)
    assert (source.data == pattern(SHAPE, 4)).all()
    third = OnGpu(user, gpu)
    user.manager.swap_blocks(target.cache, third.cache, dict(zip(EVERY, EVERY, strict=True)))
    assert (third.data == target.data).all()


def test_one_block_goes_the_same_way(make, gpu):
    """Small transfers of host memory take the lanes, which cannot reach a GPU."""
    owner, user = make()
    source, target = OnGpu(owner, gpu, seed=5, key=0), OnGpu(user, gpu)
    user.manager.pull_blocks(owner.blocks_key(), target.cache, [7], [9])
    expected = zeros(*SHAPE)
    expected[:, 9] = source.data[:, 7]
    assert (target.data == expected).all()
    user.manager.push_blocks(owner.blocks_key(), target.cache, [9], [8])
    assert (source.data[:, 8] == expected[:, 9]).all()


def test_the_engine_is_told_what_memory_it_is(make, gpu):
    owner, _ = make()
    OnGpu(owner, gpu, key=0)
    owner.blocks(key=1)
    (backend,) = owner.instance._engine.backends
    kinds = {known.kind: int(known.rows[0, 2]) for known in backend.memory._regions.values()}
    assert kinds == {"VRAM": 0, "DRAM": 0}


def test_an_unregistered_cache_is_gone(make, gpu):
    owner, user = make()
    source, target = OnGpu(owner, gpu, seed=6, key=0), OnGpu(user, gpu)
    user.manager.pull_blocks(owner.blocks_key(), target.cache, EVERY, EVERY)
    owner.manager.unregister_cache(source.cache.cache_id)
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_blocks", peer=1):
        user.manager.pull_blocks(owner.blocks_key(), target.cache, EVERY, ORDER)
    assert (target.data == pattern(SHAPE, 6)).all()


def test_beside_the_path_of_host_memory(make, gpu):
    """Each kind of memory has its own path over one link."""
    owner, user = make("auto", device="cuda")
    for model_id, where in enumerate(("host", "gpu")):
        key = owner.blocks_key(model_id)
        source = cache_on(where, owner, gpu, seed=7, key=model_id)
        target = cache_on(where, user, gpu)
        user.manager.pull_blocks(key, target.cache, EVERY, ORDER)
        assert (target.data[:, ORDER] == source.data).all()
        other = cache_on(where, user, gpu, seed=8)
        user.manager.push_blocks(key, other.cache, EVERY, ORDER)
        assert (source.data[:, ORDER] == pattern(SHAPE, 8)).all()
    assert user.instance.describe_link(1)["backend"] == {"host": "host", "device": "cuda"}


def test_copies_within_an_instance(make, gpu):
    (side,) = make(count=1)
    remote, local = OnGpu(side, gpu, seed=9), side.blocks(tensors=TENSORS, units=UNITS, words=WORDS)
    pairs = dict(zip(EVERY, ORDER, strict=True))
    side.manager.swap_blocks(remote.cache, local.cache, pairs)
    assert (local.data[:, ORDER] == remote.data).all()
    side.manager.copy_blocks(remote.cache, {0: [1, 2]})
    assert (remote.data[:, 1] == pattern(SHAPE, 9)[:, 0]).all()
    assert (remote.data[:, 2] == remote.data[:, 1]).all()


def test_numpy_cannot_address_it(make, gpu):
    (side,) = make(count=1)
    with failing("LLM_PARAM_INVALID", "tensor", "device memory"):
        OnGpu(side, gpu).cache.tensor(0)


def test_one_cache_is_in_one_memory(make, gpu):
    (side,) = make(count=1)
    host = np.zeros(UNITS * WORDS, np.uint64)
    desc = CacheDesc(2, [UNITS, WORDS], DataType.DT_UINT64, Placement.DEVICE)
    addresses = [gpu.allocate(host.nbytes), host.ctypes.data]
    with failing("LLM_PARAM_INVALID", "register_blocks_cache", "host memory", "GPU 0"):
        side.manager.register_blocks_cache(desc, addresses)


def test_the_placement_has_to_be_device(make, gpu):
    (side,) = make(count=1)
    with failing("LLM_PARAM_INVALID", "register_blocks_cache", "HOST", "GPU 0"):
        OnGpu(side, gpu, placement=Placement.HOST)


@pytest.mark.parametrize("backend", ["auto", "host", "tcp"])
def test_an_instance_that_cannot_move_it_says_so(make, gpu, backend):
    (side,) = make(backend, 1)
    with failing("LLM_FEATURE_NOT_ENABLED", "register_blocks_cache", "GPU 0", "nixl"):
        OnGpu(side, gpu)


def test_with_device_cpu_nobody_asks_the_driver(make, gpu):
    (side,) = make("tcp", 1, device="cpu")
    assert side.blocks().cache.tensor(0) is not None


@pytest.mark.expects_log("NIXL is shut down")
def test_without_the_engine_nothing_moves(make, gpu):
    owner, user = make()
    source, target = OnGpu(owner, gpu, seed=3, key=0), OnGpu(user, gpu)
    (backend,) = user.instance._engine.backends
    backend.fence("a test")
    for call in (user.manager.pull_blocks, user.manager.push_blocks):
        with failing("LLM_FAILED", call.__name__, "memory of an accelerator", peer=1):
            call(owner.blocks_key(), target.cache, EVERY, EVERY)
    assert (source.data == pattern(SHAPE, 3)).all()
    assert not target.data.any()


def test_every_byte_is_copied_by_the_driver(make, gpu, stand_in):
    owner, user = make()
    OnGpu(owner, gpu, seed=3, key=0)
    target = OnGpu(user, gpu)
    before = stand_in.copied_bytes()
    user.manager.pull_blocks(owner.blocks_key(), target.cache, EVERY, ORDER)
    assert stand_in.copied_bytes() == before + TENSORS * UNITS * WORDS * 8


def test_a_driver_that_fails(make, gpu, stand_in):
    owner, user = make()
    OnGpu(owner, gpu, seed=3, key=0)
    target = OnGpu(user, gpu)
    stand_in.fail_copies(1)
    with failing("LLM_FAILED", "pull_blocks", "SYSTEM", peer=1):
        user.manager.pull_blocks(owner.blocks_key(), target.cache, EVERY, ORDER)
    stand_in.reset()
    user.manager.pull_blocks(owner.blocks_key(), target.cache, EVERY, ORDER)
    assert (target.data[:, ORDER] == pattern(SHAPE, 3)).all()
