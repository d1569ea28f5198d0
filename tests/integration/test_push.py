"""Pushes at the public interface: checklist item 45, and 24 (both directions of one link)."""

import numpy as np
import pytest

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    DataType,
)
from llm_datadist.testing import PeerGroup
from support.instances import Side, finalize, link, pattern, zeros

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


def test_pushing_and_pulling_by_both_ends_of_one_link(sides):
    """Item 24: by the dialing and the accepting end; large and small."""
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


def check_what_arrives(member, backend, kwargs):
    """Body: own a cache; look at its memory whenever the pusher says that it has pushed."""
    with Side(1, backend).instance as instance:
        data = zeros(**kwargs)
        desc = CacheDesc(len(data), list(data.shape[1:]), DataType.DT_UINT64)
        addrs = [tensor.ctypes.data for tensor in data]
        cache = instance.cache_manager.register_blocks_cache(desc, addrs, BlocksCacheKey(1))
        member.set_event("address", [list(instance.listen_address), cache.cache_id])
        while (turn := member.receive()) is not None:
            want = pattern(data.shape, turn)[:, ::-1]
            arrived = bool((data == want).all())
            data[:] = 0
            member.send(arrived)


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


def sleep_in_one_call(member, backend):
    side = Side(1, backend)
    side.blocks(key=0)
    member.set_event("address", list(side.address))
    member.wait_end()
    finalize(side)
