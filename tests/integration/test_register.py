"""Registration at the public interface: checklist items 33 to 39."""

import numpy as np
import pytest

from llm_datadist import (
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LLMException,
    LLMStatusCode,
    Placement,
)
from support.instances import Side, failing, finalize, initialized, link, zeros

UNUSED = 2**64 - 1
DESC = CacheDesc(2, [8, 128], DataType.DT_UINT64)


@pytest.fixture
def alone():
    """An instance without links."""
    with initialized(1, "auto", listen=False, pool=1 << 20) as instance:
        yield instance


@pytest.fixture(scope="module")
def refusing():
    """The cache manager of an instance that registers nothing."""
    with initialized(1, "auto", listen=False) as instance:
        yield instance.cache_manager


def pulled(puller, owner, key, units=8):
    """Return what a pull of all blocks by a BlocksCacheKey brings."""
    target = puller.blocks(tensors=4, units=units)
    every = list(range(units))
    puller.manager.pull_blocks(key, target.cache, every, every)
    return target.data


def test_ids_count_from_1_per_init_over_all_kinds_of_caches(alone):
    """Item 33."""
    options = {"llm.EnableCacheManager": "1", "llm.MemPoolConfig": '{"memory_size": 1048576}'}
    data = zeros(2, 8, 128)
    addrs = [tensor.ctypes.data for tensor in data]
    for _ in range(2):
        manager = alone.cache_manager
        caches = [
            manager.register_cache(DESC, addrs),
            manager.allocate_cache(DESC),
            manager.register_blocks_cache(DESC, addrs),
            manager.allocate_blocks_cache(DESC),
        ]
        assert [cache.cache_id for cache in caches] == [1, 2, 3, 4]
        assert [cache.is_blocks_cache for cache in caches] == [False, False, True, True]
        manager.unregister_cache(1)
        assert manager.register_cache(DESC, addrs).cache_id == 5
        alone.finalize()
        alone.init(options)


def test_the_limit_of_addresses_is_an_option():
    """Item 34: max_registered_addrs."""
    with (
        initialized(1, "auto", listen=False, max_registered_addrs=2) as instance,
        failing("LLM_PARAM_INVALID", "register_cache", 3, "limit is 2", "max_registered"),
    ):
        instance.cache_manager.register_cache(CacheDesc(3, [1], DataType.DT_INT8), [1, 2, 3])


@pytest.mark.parametrize(
    ("placement", "accessible", "allowed"),
    [
        (Placement.DEVICE, None, True),
        (Placement.DEVICE, False, False),
        (Placement.HOST, None, False),
        (Placement.HOST, True, True),
    ],
)
def test_remote_accessible(sides, placement, accessible, allowed):
    """Item 35: defaults by placement; a refusal names the cache, and concerns both directions."""
    owner, user = sides
    blocks = owner.blocks(3, key=0, placement=placement, accessible=accessible)
    slots = owner.slots(4, placement=placement, accessible=accessible)
    own_blocks, own_slots = user.blocks(), user.slots()
    calls = {
        "pull_blocks": (owner.blocks_key(), own_blocks.cache, [1], [2]),
        "push_blocks": (owner.blocks_key(), own_blocks.cache, [3], [4]),
        "pull_cache": (slots.slot(), own_slots.cache),
        "push_cache": (slots.slot(1), own_slots.cache, 1),
    }
    before = blocks.data.copy(), slots.data.copy()
    for operation, arguments in calls.items():
        call = getattr(user.manager, operation)
        if allowed:
            call(*arguments)
        else:
            held = blocks if "blocks" in operation else slots
            with failing("LLM_PARAM_INVALID", operation, f"cache {held.id}", peer=owner.id):
                call(*arguments)
    if allowed:
        assert (own_blocks.data[:, 2] == blocks.data[:, 1]).all()
        assert (own_slots.data[:, 0] == slots.data[:, 0]).all()
    else:
        assert (blocks.data == before[0]).all()
        assert (slots.data == before[1]).all()
        assert not own_blocks.data.any()


def test_caches_that_are_not_accessible_serve_their_owner(sides):
    """Item 35: local use, of either placement."""
    owner, user = sides
    source = owner.blocks(7, key=0)
    for placement in Placement:
        target = user.blocks(placement=placement, accessible=False)
        user.manager.pull_blocks(owner.blocks_key(), target.cache, [1, 2], [5, 6])
        assert (target.data[:, [5, 6]] == source.data[:, [1, 2]]).all()


def test_one_address_in_several_caches(sides):
    """Item 36: each is its own; to unregister one leaves the other."""
    owner, user = sides
    first = owner.blocks(5, key=1)
    second = owner.blocks(data=first.data, key=2)
    assert first.id != second.id
    assert first.cache.tensor_addrs == second.cache.tensor_addrs
    owner.manager.unregister_cache(first.id)
    assert (pulled(user, owner, owner.blocks_key(2)) == second.data).all()
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_blocks", peer=owner.id):
        pulled(user, owner, owner.blocks_key(1))


@pytest.mark.expects_log("now names cache")
def test_the_last_of_equal_blocks_keys_wins(sides):
    """Item 36: the earlier cache stays reachable by its id, block by block."""
    owner, user = sides
    first, second = owner.blocks(5, key=1), owner.blocks(6, key=1)
    assert (pulled(user, owner, owner.blocks_key(1)) == second.data).all()
    target = user.slots()
    user.manager.pull_cache(first.slot(3), target.cache, 2)
    assert (target.data[:, 2] == first.data[:, 3]).all()


def test_registration_after_the_link(sides):
    """Item 37: seen at once by the peer, again and again, under new and under known keys."""
    owner, user = sides
    for turn in range(1, 5):
        held = owner.blocks(turn, key=turn % 2)
        assert (pulled(user, owner, owner.blocks_key(turn % 2)) == held.data).all()
        owner.manager.unregister_cache(held.id)


def test_registration_before_the_link(backend):
    """Item 37: from both ends of a link that comes later."""
    first, second = Side(1, backend), Side(2, backend)
    try:
        held = [side.blocks(number, key=0) for number, side in enumerate((first, second), 1)]
        link(second.instance, first.address)
        assert (pulled(second, first, first.blocks_key()) == held[0].data).all()
        assert (pulled(first, second, second.blocks_key()) == held[1].data).all()
    finally:
        finalize(first, second)


def test_keys_differ_by_every_part(sides):
    """Item 38: req_id, model_id and prefix_id."""
    owner, user = sides
    keys = [CacheKey(1, 1), CacheKey(1, 1, 1), CacheKey(1, 1, 0, 0), CacheKey(1, 2)]
    source = owner.slots(9, keys=keys)
    target = user.slots()
    for slot in (2, 0, 3, 1):
        user.manager.pull_cache(keys[slot], target.cache, slot)
        assert (target.data[:, slot] == source.data[:, slot]).all()


def test_unregister_with_a_link(sides):
    """Item 39: final; no kind of key and no direction reaches the memory any more."""
    owner, user = sides
    held = owner.slots(1, keys=[CacheKey(1, 1)])
    blocks = owner.blocks(2, key=0)
    own, own_blocks = user.slots(8), user.blocks(9)
    user.manager.pull_cache(held.slot(), own.cache)
    user.manager.pull_blocks(owner.blocks_key(), own_blocks.cache, [0], [0])
    owner.clean()
    before = held.data.copy(), blocks.data.copy()
    calls = {
        "pull_cache": [(held.slot(), own.cache), (CacheKey(1, 1), own.cache)],
        "push_cache": [(held.slot(), own.cache)],
        "pull_blocks": [(owner.blocks_key(), own_blocks.cache, [0], [0])],
        "push_blocks": [(owner.blocks_key(), own_blocks.cache, [0], [0])],
    }
    for operation, many in calls.items():
        for arguments in many:
            with failing("LLM_KV_CACHE_NOT_EXIST", operation, peer=owner.id):
                getattr(user.manager, operation)(*arguments)
    assert (held.data == before[0]).all()
    assert (blocks.data == before[1]).all()
    # Another cache under the same key serves at once.
    again = owner.blocks(3, key=0)
    assert (pulled(user, owner, owner.blocks_key()) == again.data).all()


def test_unregistering_frees_the_memory_for_its_owner(sides):
    """Item 39: no peer sees under the old key what the owner writes after the return."""
    owner, user = sides
    data = np.zeros((4, 8, 128), np.uint64)
    for turn in range(1, 20):
        held = owner.blocks(data=data, key=0)
        data[:] = turn
        assert (pulled(user, owner, owner.blocks_key()) == turn).all()
        owner.manager.unregister_cache(held.id)
        data[:] = 0
        user.clean()
    key = CacheKeyByIdAndIndex(owner.id, held.id)
    with pytest.raises(LLMException) as caught:
        user.manager.pull_cache(key, user.slots().cache)
    assert caught.value.status_code is LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
