"""What changes at the owner while a peer reads or writes it: checklist items 39 and 55.

Every word of what an owner publishes in one turn tells the turn. A pull that returns must have
brought one turn only, and none that was over when the pull began.
"""

import operator
import threading
import time

import numpy as np
import pytest

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    MemInfo,
    Memtype,
)
from llm_datadist.testing import PeerGroup
from support.instances import PAGE, Pages, Side, failing, finalize, link, succeeds_or

GONE = "LLM_KV_CACHE_NOT_EXIST"
DURATION_S = 0.7
BLOCKS, WORDS = 16, 8192  # 1 MiB a tensor: several batches, so that a change can hit a pull
DESC = CacheDesc(2, [BLOCKS, WORDS], DataType.DT_UINT64)
POISON = 2**64 - 1


class Turns:
    """The turn that is published now, for the puller: `over` is the last one that has ended."""

    def __init__(self):
        self.over = 0
        self.stop = threading.Event()


class Until:
    """Ends after DURATION_S; later on a busy machine, which has not yet done enough by then."""

    def __init__(self):
        self._least = time.monotonic() + DURATION_S

    def goes_on(self, *counts):
        """Return whether to go on, with these counts of what has to happen at least once."""
        now = time.monotonic()
        return now < self._least or (not all(counts) and now < self._least + 15)


def pause(turn, seconds):
    """Leave the peer some time: little, and in each eighth turn enough for a slow machine."""
    time.sleep(seconds if turn % 8 else max(seconds, 0.02) + turn / 5000)


def alternate(change, turns):
    turn = 0
    try:
        while not turns.stop.is_set():
            turn += 1
            change(turn, turns)
    finally:
        turns.stop.set()


def pull_all_the_time(pull, data, turns, fewest):
    """Pull until the time is over; return how often it brought bytes and how often it raised.

    Goes on for longer on a busy machine, until there are `fewest` of both.
    """
    brought = raised = 0
    until = Until()
    while until.goes_on(brought >= fewest[0], raised >= fewest[1]):
        over = turns.over
        data[:] = 0
        if not succeeds_or(GONE, pull):
            raised += bool(brought)  # before, there may have been nothing yet
            continue
        turn = data.flat[0]
        assert (data == turn).all(), f"torn: {np.unique(data)}"
        assert turn != POISON, "memory of nobody"
        assert turn > over, f"stale: {turn} was over, {over} too"
        brought += 1
    return brought, raised


def race(sides, change, make_pull, fewest=(1, 1)):
    """Let the owner change in a thread of its own while the user pulls; return the counts."""
    turns = Turns()
    target = sides[1].blocks(tensors=2, units=BLOCKS, words=WORDS)
    changer = threading.Thread(target=alternate, args=(change, turns))
    changer.start()
    try:
        counts = pull_all_the_time(make_pull(target), target.data, turns, fewest)
    finally:
        turns.stop.set()
        changer.join()
    assert all(map(operator.ge, counts, fewest)), counts
    return counts


@pytest.fixture
def pull_blocks(sides):
    """Make a pull of all blocks by BlocksCacheKey(1, 0)."""
    _, user = sides
    every = list(range(BLOCKS))

    def make(target):
        return lambda: user.manager.pull_blocks(BlocksCacheKey(1), target.cache, every, every)

    return make


def test_unregistering(sides, pull_blocks):
    """Item 55: the memory is the owner's again, who writes something else into it at once."""
    owner, _ = sides
    data = np.full((2, BLOCKS, WORDS), POISON, np.uint64)

    def change(turn, turns):
        data[:] = turn
        cache = owner.manager.register_blocks_cache(
            DESC, [tensor.ctypes.data for tensor in data], BlocksCacheKey(1)
        )
        pause(turn, 0.0005)
        owner.manager.unregister_cache(cache.cache_id)
        data[:] = POISON
        turns.over = turn

    race(sides, change, pull_blocks)


@pytest.mark.expects_log("now names cache")
def test_registering_another_under_the_same_key(sides, pull_blocks):
    """Item 55: two buffers in turn; the key always names one of them."""
    owner, _ = sides
    buffers = [np.full((2, BLOCKS, WORDS), POISON, np.uint64) for _ in range(2)]
    registered = []

    def change(turn, turns):
        data = buffers[turn % 2]
        data[:] = turn
        cache = owner.manager.register_blocks_cache(
            DESC, [tensor.ctypes.data for tensor in data], BlocksCacheKey(1)
        )
        turns.over = turn - 1
        pause(turn, 0.0005)
        registered.append(cache.cache_id)
        if len(registered) > 1:
            owner.manager.unregister_cache(registered.pop(0))
            buffers[(turn + 1) % 2][:] = POISON

    try:
        _, raised = race(sides, change, pull_blocks, (10, 0))
        assert not raised, "the key always named a cache"
    finally:
        for cache_id in registered:
            owner.manager.unregister_cache(cache_id)


def test_deallocating_and_allocating_again(sides):
    """Item 55: the pool gives the same pages to the next cache, which has no key."""
    owner, user = sides
    desc = CacheDesc(2, [1, BLOCKS * WORDS], DataType.DT_UINT64)
    shared = {}

    def change(turn, turns):
        cache = owner.manager.allocate_cache(desc)
        for tensor in range(2):
            cache.tensor(tensor)[:] = turn
        shared["now"] = cache.cache_id, turn
        pause(turn, 0.0005)
        owner.manager.deallocate_cache(cache)
        other = owner.manager.allocate_cache(desc)
        assert other.tensor_addrs == cache.tensor_addrs
        for tensor in range(2):
            other.tensor(tensor)[:] = POISON
        owner.manager.deallocate_cache(other)

    turns = Turns()
    target = user.slots(tensors=2, units=1, words=BLOCKS * WORDS)
    changer = threading.Thread(target=alternate, args=(change, turns))
    changer.start()
    brought = raised = 0
    until = Until()
    try:
        while until.goes_on(brought, raised):
            cache_id, turn = shared.get("now", (1, 0))
            key = CacheKeyByIdAndIndex(1, cache_id)
            if succeeds_or(GONE, user.manager.pull_cache, key, target.cache):
                assert (target.data == turn).all(), np.unique(target.data)
                brought += 1
            else:
                raised += 1
    finally:
        turns.stop.set()
        changer.join()
    assert brought
    assert raised


def test_remapping(sides, pull_blocks):
    """Item 55: a pull brings one turn's bytes or raises, however often its memory is remapped."""
    owner, _ = sides
    pages = Pages(2, BLOCKS, WORDS * 8 // PAGE)
    addrs = [tensor.ctypes.data for tensor in pages.data]
    info = MemInfo(Memtype.MEM_TYPE_DEVICE, pages.address, pages.size)

    def change(turn, turns):
        for tensor in range(2):
            for unit in range(BLOCKS):
                pages.replace(tensor, unit)
        pages.data[:] = turn
        cache = owner.manager.register_blocks_cache(DESC, addrs, BlocksCacheKey(1))
        for _ in range(3):
            pause(turn, 0.001)
            owner.manager.remap_registered_memory(info)
        owner.manager.unregister_cache(cache.cache_id)
        turns.over = turn

    try:
        race(sides, change, pull_blocks, (1, 0))
    finally:
        pages.close()


def test_keys_that_are_consumed_and_bound_again(sides):
    """Item 55: a CacheKey of the pool, again and again; each pull has the right turn's bytes."""
    owner, user = sides
    desc = CacheDesc(2, [1, WORDS], DataType.DT_UINT64)
    key = CacheKey(1, 5)
    target = user.slots(tensors=2, units=1, words=WORDS)
    for turn in range(1, 200):
        cache = owner.manager.allocate_cache(desc, [key])
        for tensor in range(2):
            cache.tensor(tensor)[:] = turn
        owner.manager.deallocate_cache(cache)
        user.manager.pull_cache(key, target.cache)
        assert (target.data == turn).all()


def test_pushes_while_the_target_is_unregistered(sides):
    """Items 39 and 55: when unregister_cache has returned nothing is written any more."""
    owner, user = sides
    data = np.zeros((2, BLOCKS, WORDS), np.uint64)
    source = user.blocks(3, tensors=2, units=BLOCKS, words=WORDS)
    every = list(range(BLOCKS))
    stop = threading.Event()
    counts = {"done": 0, "raised": 0}

    def push():
        while not stop.is_set():
            arguments = (BlocksCacheKey(1), source.cache, every, every)
            done = succeeds_or(GONE, user.manager.push_blocks, *arguments)
            counts["done" if done else "raised"] += 1

    pusher = threading.Thread(target=push)
    pusher.start()
    try:
        until, turn = Until(), 0
        while until.goes_on(*counts.values()):
            turn += 1
            cache = owner.manager.register_blocks_cache(
                DESC, [tensor.ctypes.data for tensor in data], BlocksCacheKey(1)
            )
            pause(turn, 0.002)
            owner.manager.unregister_cache(cache.cache_id)
            data[:] = POISON
            time.sleep(0.0005)
            assert (data == POISON).all()
    finally:
        stop.set()
        pusher.join()
    assert all(counts.values()), counts


def test_local_caches_that_go_during_a_pull(sides):
    """Items 39 and 55: the puller's own cache, by another of its threads."""
    owner, user = sides
    owner.blocks(4, key=0, tensors=2, units=BLOCKS, words=WORDS)
    data = np.zeros((2, BLOCKS, WORDS), np.uint64)
    every = list(range(BLOCKS))
    shared = {}
    stop = threading.Event()
    counts = {"done": 0, "raised": 0}

    def pull():
        while not stop.is_set():
            cache = shared.get("cache")
            if cache is None:
                continue
            arguments = (BlocksCacheKey(1), cache, every, every)
            done = succeeds_or(GONE, user.manager.pull_blocks, *arguments)
            counts["done" if done else "raised"] += 1

    puller = threading.Thread(target=pull)
    puller.start()
    try:
        until, turn = Until(), 0
        while until.goes_on(*counts.values()):
            turn += 1
            cache = user.manager.register_blocks_cache(
                DESC, [tensor.ctypes.data for tensor in data]
            )
            shared["cache"] = cache
            pause(turn, 0.002)
            user.manager.unregister_cache(cache.cache_id)
            data[:] = POISON
            time.sleep(0.0005)
            assert (data == POISON).all()
    finally:
        stop.set()
        puller.join()
    assert all(counts.values()), counts


def change_for_ever(member, backend):
    """Body: an owner process that unregisters, unmaps, maps and registers again, all the time."""
    side = Side(1, backend)
    member.set_event("address", list(side.address))
    member.wait_for("linked")
    pages = Pages(2, BLOCKS, WORDS * 8 // PAGE)
    addrs = [tensor.ctypes.data for tensor in pages.data]
    enough = threading.Event()
    waiter = threading.Thread(target=lambda: member.wait_for("enough") or enough.set())
    waiter.start()
    turn = 0
    while not enough.is_set():
        turn += 1
        pages.data[:] = turn
        cache = side.manager.register_blocks_cache(DESC, addrs, BlocksCacheKey(1))
        pause(turn, 0.002)
        side.manager.unregister_cache(cache.cache_id)
        for tensor in range(2):  # no transfer may touch it any more, or a process would crash
            for unit in range(BLOCKS):
                pages.unmap(tensor, unit)
        for tensor in range(2):
            for unit in range(BLOCKS):
                pages.replace(tensor, unit)
    waiter.join()
    member.set_event("done", turn)
    member.wait_end()
    finalize(side)
    return turn


def test_memory_that_is_unmapped_after_the_unregister(backend):
    """Items 39 and 55: across processes; no side crashes, no fault is blamed on anybody."""
    with PeerGroup() as group:
        group.start(change_for_ever, backend)
        user = Side(2, backend)
        try:
            link(user.instance, group.wait_for("address"))
            group.set_event("linked")
            target = user.blocks(tensors=2, units=BLOCKS, words=WORDS)
            source = user.blocks(tensors=2, units=BLOCKS, words=WORDS)
            every = list(range(BLOCKS))
            counts = {"pulled": 0, "gone": 0}
            last = 0
            until = Until()
            while until.goes_on(*counts.values()):
                arguments = (BlocksCacheKey(1), target.cache, every, every)
                if not succeeds_or(GONE, user.manager.pull_blocks, *arguments):
                    counts["gone"] += 1
                    continue
                turn = target.data.flat[0]
                assert (target.data == turn).all(), np.unique(target.data)
                assert turn >= last
                last = turn
                counts["pulled"] += 1
            assert all(counts.values()), counts
            group.set_event("enough")
            assert group.wait_for("done") > 1
            with failing(GONE, "push_blocks", peer=1):
                user.manager.push_blocks(BlocksCacheKey(1), source.cache, every, every)
        finally:
            finalize(user)


def test_ids_are_never_given_again(sides):
    """Item 55: an old id names nothing, whatever has come since."""
    owner, user = sides
    target = user.slots()
    old = owner.slots(1)
    owner.manager.unregister_cache(old.id)
    for turn in range(2, 30):
        held = owner.slots(turn)
        with failing(GONE, "pull_cache", peer=1):
            user.manager.pull_cache(CacheKeyByIdAndIndex(1, old.id), target.cache)
        owner.manager.unregister_cache(held.id)
