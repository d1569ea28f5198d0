"""Pushes at the public interface: checklist item 45, and 24 (both directions of one link)."""

import numpy as np
import pytest

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
)
from llm_datadist.testing import PeerGroup
from support.instances import Side, failing, finalize, link, pattern, zeros

BIG = {"tensors": 2, "units": 64, "words": 8192}


def test_blocks_land_in_the_peers_blocks(sides):
    """Item 45: random blocks of random caches, against numpy; nothing else is touched."""
    owner, user = sides
    random = np.random.default_rng(45)
    target, source = owner.blocks(1, key=0, units=100), user.blocks(2, units=200)
    expected = target.data.copy()
    for _ in range(30):
        count = int(random.integers(1, 100))
        dst = random.permutation(100)[:count].tolist()
        src = random.integers(0, 200, count).tolist()
        user.manager.push_blocks(owner.blocks_key(), source.cache, src, dst)
        expected[:, dst] = source.data[:, src]
        assert (target.data == expected).all()


def test_slots_land_in_the_peers_slots(sides):
    """Item 45: -1 is the local slot; a size is bytes per tensor, an extension."""
    owner, user = sides
    target, source = owner.slots(1), user.slots(2)
    expected = target.data.copy()
    user.manager.push_cache(target.slot(3), source.cache, 6)
    expected[:, 3] = source.data[:, 6]
    assert (target.data == expected).all()
    user.manager.push_cache(target.slot(4), source.cache, size=24)
    expected[:, 4, :3] = source.data[:, 0, :3]
    assert (target.data == expected).all()
    small = user.slots(3, words=16)
    user.manager.push_cache(target.slot(7), small.cache, 1)
    expected[:, 7, :16] = small.data[:, 1]
    assert (target.data == expected).all()


def test_wrong_sizes_and_slots(sides):
    """Item 45: each refusal names the argument; nothing has moved."""
    owner, user = sides
    target, source = owner.slots(), user.slots(2)
    blocks = user.blocks()
    for arguments, words in (
        ({"size": 0}, ["size is 0"]),
        ({"size": -2}, ["size is -2"]),
        ({"size": 1025}, ["size is 1025"]),
        ({"src_batch_index": 8}, ["src_batch_index is 8"]),
        ({"dst_cache_key": target.slot(8)}, ["slot 8"]),
        ({"src_cache": blocks.cache}, ["blocks cache"]),
        ({"src_cache": user.slots(2, words=256).cache}, ["size is 2048", "peer's slot has 1024"]),
        ({"src_cache": user.slots(2, tensors=2).cache}, ["2 tensors", "4"]),
    ):
        call = {"dst_cache_key": target.slot(), "src_cache": source.cache, **arguments}
        with failing("LLM_PARAM_INVALID", "push_cache", *words):
            user.manager.push_cache(**call)
    assert not target.data.any()
    for key in (CacheKey(1, 1), BlocksCacheKey(1), None):
        with pytest.raises(TypeError):
            user.manager.push_cache(key, source.cache)
    for key in (CacheKey(1, 1), target.slot(), None):
        with pytest.raises(TypeError):
            user.manager.push_blocks(key, blocks.cache, [0], [0])
    for wrong in (0.5, "1", None, True):
        with pytest.raises(TypeError):
            user.manager.push_cache(target.slot(), source.cache, wrong)
        with pytest.raises(TypeError):
            user.manager.push_cache(target.slot(), source.cache, size=wrong)
    for wrong in (None, "cache"):
        with pytest.raises(TypeError):
            user.manager.push_cache(target.slot(), wrong)
        with pytest.raises(TypeError):
            user.manager.push_blocks(BlocksCacheKey(1), wrong)


def test_wrong_indices(sides):
    """Item 45: as in pulls; destinations are the peer's."""
    owner, user = sides
    target = owner.blocks(key=0, units=4)
    source = user.blocks(2, units=6)

    def push(src, dst):
        user.manager.push_blocks(owner.blocks_key(), source.cache, src, dst)

    for src, dst, words in (
        ([6], [0], ["src_blocks[0] is 6", "6 blocks"]),
        ([0], [4], ["dst_blocks", "4", "4 blocks"]),
        ([0, 1], [2, 2], ["dst_blocks[1] is 2 again"]),
        ([0, 1], [2], ["src_blocks has 2", "dst_blocks 1"]),
    ):
        with failing("LLM_PARAM_INVALID", "push_blocks", *words):
            push(src, dst)
    for src, dst in (([-1], [0]), ([0], [-1])):
        with pytest.raises(ValueError, match="negative"):
            push(src, dst)
    for wrong in (1.0, "1", True, None):
        with pytest.raises(TypeError):
            push([wrong], [0])
        with pytest.raises(TypeError):
            push([0], [wrong])
    with failing("LLM_PARAM_INVALID", "push_blocks", "512 bytes locally"):
        user.manager.push_blocks(owner.blocks_key(), user.blocks(words=64).cache, [0], [0])
    with failing("LLM_PARAM_INVALID", "push_blocks", "src_cache", "contiguous"):
        user.manager.push_blocks(owner.blocks_key(), user.slots().cache, [0], [0])
    assert not target.data.any()


def test_unknown_keys_and_clusters(sides):
    """Item 45: statuses and texts."""
    user = sides[1]
    slots, blocks = user.slots(), user.blocks()
    for status, cluster in (("LLM_KV_CACHE_NOT_EXIST", 1), ("LLM_NOT_YET_LINK", 9)):
        with failing(status, "push_blocks", peer=cluster):
            user.manager.push_blocks(BlocksCacheKey(cluster, 8), blocks.cache, [0], [0])
        with failing(status, "push_cache", peer=cluster):
            user.manager.push_cache(CacheKeyByIdAndIndex(cluster, 10**6), slots.cache)


def test_pushing_and_pulling_by_both_ends_of_one_link(sides):
    """Item 24: whoever has opened it, whatever their roles; large and small."""
    first, second = sides
    for kwargs in ({}, BIG):
        held = [side.blocks(side.id, key=0, **kwargs) for side in sides]
        mine = [side.blocks(10 + side.id, key=1, **kwargs) for side in sides]
        first.manager.push_blocks(second.blocks_key(1), held[0].cache, [1], [2])
        second.manager.push_blocks(first.blocks_key(1), held[1].cache, [3], [4])
        assert (mine[1].data[:, 2] == held[0].data[:, 1]).all()
        assert (mine[0].data[:, 4] == held[1].data[:, 3]).all()
        first.manager.pull_blocks(second.blocks_key(), mine[0].cache, [5], [6])
        second.manager.pull_blocks(first.blocks_key(), mine[1].cache, [7], [0])
        assert (mine[0].data[:, 6] == held[1].data[:, 5]).all()
        assert (mine[1].data[:, 0] == held[0].data[:, 7]).all()
        first.clean()
        second.clean()


def check_what_arrives(here, backend, kwargs):
    """Body: own a cache; look at its memory whenever the pusher says that it has pushed."""
    with Side(1, backend).instance as instance:
        data = zeros(**kwargs)
        desc = CacheDesc(len(data), list(data.shape[1:]), DataType.DT_UINT64)
        addrs = [tensor.ctypes.data for tensor in data]
        cache = instance.cache_manager.register_blocks_cache(desc, addrs, BlocksCacheKey(1))
        here.set_event("address", [list(instance.listen_address), cache.cache_id])
        while (turn := here.receive()) is not None:
            want = pattern(data.shape, turn)[:, ::-1]
            arrived = bool((data == want).all())
            data[:] = 0
            here.send(arrived)


@pytest.mark.parametrize("kwargs", [{"tensors": 2, "units": 4, "words": 16}, BIG])
def test_pushed_bytes_are_visible_to_the_other_process(backend, kwargs):
    """Item 45: at once when the call returns; also after many times."""
    with PeerGroup() as group:
        peer = group.start(check_what_arrives, backend, kwargs)
        pusher = Side(2, backend)
        try:
            address, _ = group.wait_for("address")
            link(pusher.instance, address)
            source = pusher.blocks(1, **kwargs)
            every = list(range(kwargs["units"]))
            for turn in range(1, 8):
                source.data[:] = pattern(source.data.shape, turn)
                pusher.manager.push_blocks(BlocksCacheKey(1), source.cache, every, every[::-1])
                peer.send(turn)
                assert peer.receive(), turn
            peer.send(None)
        finally:
            finalize(pusher)


def test_the_target_need_not_take_part(backend):
    """Item 45: a target whose program never calls the library again is served all the same."""
    with PeerGroup() as group:
        group.start(sleep_in_one_call, backend)
        pusher = Side(2, backend)
        try:
            link(pusher.instance, group.wait_for("address"))
            source, back = pusher.blocks(3), pusher.blocks()
            every = list(range(8))
            pusher.manager.push_blocks(BlocksCacheKey(1), source.cache, every, every)
            pusher.manager.pull_blocks(BlocksCacheKey(1), back.cache, every, every)
            assert (back.data == source.data).all()
        finally:
            finalize(pusher)


def sleep_in_one_call(here, backend):
    side = Side(1, backend)
    side.blocks(key=0)
    here.set_event("address", list(side.address))
    here.wait_end()
    finalize(side)
