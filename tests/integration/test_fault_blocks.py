"""A fault touches the blocks at fault and no others: checklist item 58."""

import numpy as np
import pytest

from llm_datadist import BlocksCacheKey, LLMException, MemInfo, Memtype
from support.instances import (
    PAGE,
    Pages,
    Side,
    eventually,
    failing,
    finalize,
    link,
    linked_sides,
    pattern,
)

LOCAL, REMOTE = "LLM_DEVICE_MEM_ERROR", "LLM_SUSPECT_REMOTE_ERROR"
TENSORS, UNITS = 4, 32
BAD = {(0, 5), (0, 6), (2, 9), (3, 31)}
KEY = BlocksCacheKey(1)

pytestmark = pytest.mark.expects_log("met a fault in local memory")


@pytest.fixture
def paged(sides):
    """A cache of pages at both sides; what was done to the pages is undone."""
    made = []

    def make(side, **kwargs):
        memory = Pages(TENSORS, UNITS)
        memory.data[:] = pattern(memory.shape, side.id)
        made.append((side, memory))
        return side.blocks(data=memory.data, **kwargs), memory

    yield make
    for side, memory in made:
        side.clean()
        repair(memory)
        memory.close()


def repair(memory):
    for tensor, unit in BAD:
        memory.replace(tensor, unit)


@pytest.mark.parametrize("operation", ["pull_blocks", "push_blocks"])
@pytest.mark.parametrize("at_fault", [LOCAL, REMOTE])
@pytest.mark.parametrize("in_order", [True, False])
def test_every_other_block_of_the_call_is_moved(sides, paged, operation, at_fault, in_order):
    """Item 58: all blocks at fault are named, at once; every other one has arrived, right."""
    owner, user = sides
    owned, owner_pages = paged(owner, key=0)
    used, user_pages = paged(user)
    memory = user_pages if at_fault == LOCAL else owner_pages
    for tensor, unit in BAD:
        memory.protect(tensor, unit)
    src = list(range(UNITS))
    dst = src if in_order else [int(unit) for unit in np.random.default_rng(1).permutation(UNITS)]
    with failing(at_fault, operation, "and 3 more", peer=1) as error:
        getattr(user.manager, operation)(KEY, used.cache, src, dst)
    assert {(fault.tensor_index, fault.block) for fault in error.value.faults} == BAD
    assert len(error.value.faults) == len(BAD)
    pulls = operation == "pull_blocks"
    source, target = (owned, used) if pulls else (used, owned)
    source_is_bad = pulls is (at_fault == REMOTE)
    for tensor in range(TENSORS):
        for src_block, dst_block in zip(src, dst, strict=True):
            if (tensor, src_block if source_is_bad else dst_block) not in BAD:
                assert (target.data[tensor, dst_block] == source.data[tensor, src_block]).all()
    assert user.instance.describe_link(1)["state"] == "LINKED"


def test_both_sides_at_fault_in_one_call(sides, paged):
    """Item 58: the record says whose memory it is."""
    owner, user = sides
    _, owner_pages = paged(owner, key=0)
    used, user_pages = paged(user)
    owner_pages.protect(2, 9)
    user_pages.protect(0, 5)
    every = list(range(UNITS))
    with pytest.raises(LLMException) as error:
        user.manager.pull_blocks(KEY, used.cache, every, every)
    found = {(f.cluster_id, f.tensor_index, f.block) for f in error.value.faults}
    assert found == {(1, 2, 9), (2, 0, 5)}
    assert error.value.status_code.name in {LOCAL, REMOTE}


@pytest.mark.parametrize("operation", ["pull_blocks", "push_blocks"])
def test_nobody_touches_memory_that_is_known_to_be_at_fault(backend, operation):
    """Item 58: until it is remapped, transfers of all peers fail at once, those of a peer that
    links later too. The page is good again meanwhile: who touched it would not notice."""
    owner, *users = sides = [Side(number, backend) for number in (1, 2, 3, 4)]
    memory = Pages(TENSORS, UNITS)
    try:
        owned = owner.blocks(data=memory.data, key=0)
        caches = [user.blocks(tensors=TENSORS, units=UNITS, words=PAGE // 8) for user in users]
        link(users[0].instance, owner.address)
        link(users[1].instance, owner.address)
        memory.protect(1, 7)
        with failing(REMOTE, operation, peer=1):
            getattr(users[0].manager, operation)(KEY, caches[0].cache, [7], [7])
        eventually(owner.manager.faulted_ranges)
        link(users[2].instance, owner.address)
        memory.replace(1, 7)
        for user, cache in zip(users, caches, strict=True):
            call = getattr(user.manager, operation)
            eventually(lambda user=user: user.instance._engine.links.get(1, "").data.marks)
            with failing(REMOTE, operation, "found at fault before", peer=1) as error:
                call(KEY, cache.cache, [6, 7], [6, 7])
            assert [(f.tensor_index, f.block) for f in error.value.faults] == [(1, 7)]
            call(KEY, cache.cache, [6, 8], [6, 8])
        mend = MemInfo(Memtype.MEM_TYPE_DEVICE, memory.at(1, 7), PAGE)
        owner.manager.remap_registered_memory(mend)
        for user, cache in zip(users, caches, strict=True):
            getattr(user.manager, operation)(KEY, cache.cache, [7], [7])
            assert (cache.data[:, 7] == owned.data[:, 7]).all()
    finally:
        finalize(*sides)
    memory.close()


def test_a_remap_of_one_range_leaves_the_marks_of_others(sides, paged):
    """Item 58: the cache has a new life by the remap, and what is not repaired stays known."""
    owner, user = sides
    owned, memory = paged(owner, key=0)
    used, _ = paged(user)
    for tensor, unit in ((0, 5), (2, 9)):
        memory.protect(tensor, unit)
    with failing(REMOTE, "pull_blocks", "and 1 more", peer=1):
        user.manager.pull_blocks(KEY, used.cache, [5, 9], [5, 9])
    eventually(lambda: len(owner.manager.faulted_ranges()) == 2)
    repair(memory)
    owner.manager.remap_registered_memory(MemInfo(Memtype.MEM_TYPE_DEVICE, memory.at(0, 5), PAGE))
    user.manager.pull_blocks(KEY, used.cache, [5], [5])
    assert (used.data[:, 5] == owned.data[:, 5]).all()
    marks = user.instance._engine.links.get(1, "").data.marks
    eventually(lambda: marks)
    with failing(REMOTE, "pull_blocks", "found at fault before", peer=1):
        user.manager.pull_blocks(KEY, used.cache, [9], [9])


def test_a_mark_goes_with_the_peers_cache(sides, paged):
    """Item 58: memory that the peer registers again is taken as good."""
    owner, user = sides
    owned, memory = paged(owner, key=0)
    used, _ = paged(user)
    memory.protect(0, 5)
    with failing(REMOTE, "pull_blocks", peer=1):
        user.manager.pull_blocks(KEY, used.cache, [5], [5])
    eventually(owner.manager.faulted_ranges)
    owner.manager.unregister_cache(owned.id)
    memory.replace(0, 5)
    owner.blocks(data=memory.data, key=0)
    user.manager.pull_blocks(KEY, used.cache, [5], [5])
    assert (used.data[:, 5] == memory.data[:, 5]).all()


@pytest.mark.parametrize("operation", ["pull_blocks", "push_blocks"])
def test_checked_transfers_go_on_around_a_fault_too(backend, operation):
    """Item 58: the same with checksums; the blocks that arrive are checked like all others."""
    owner, user = sides = linked_sides(backend, checksum="crc32c")
    memory = Pages(TENSORS, UNITS)
    try:
        memory.data[:] = pattern(memory.shape, 1)
        owned = owner.blocks(data=memory.data, key=0)
        used = user.blocks(2, tensors=TENSORS, units=UNITS, words=PAGE // 8)
        memory.protect(2, 9)
        every = list(range(UNITS))
        with failing(REMOTE, operation, peer=1) as error:
            getattr(user.manager, operation)(KEY, used.cache, every, every)
        assert [(f.tensor_index, f.block) for f in error.value.faults] == [(2, 9)]
        good = [unit for unit in every if unit != 9]
        assert (used.data[:, good] == owned.data[:, good]).all()
        assert user.instance.describe_link(1)["counters"]["checksum_mismatches"] == 0
        memory.replace(2, 9)
    finally:
        finalize(*sides)
    memory.close()
