"""Which of the peer's caches a call sees: items 37, 44 and 55, with both settings of
enable_remote_cache_accessible."""

import sys
import threading
import time

import pytest

from llm_datadist import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from support.instances import failing, finalize, linked_sides, succeeds_or

GONE = "LLM_KV_CACHE_NOT_EXIST"


@pytest.fixture(params=[False, True], ids=["off", "on"])
def ends(backend, request):
    made = linked_sides(backend, enable_remote_cache_accessible=request.param)
    yield made
    finalize(*made)


def test_keys_come_and_go(ends):
    """Item 37: a kept directory is refreshed on a miss, and when what it names is gone."""
    owner, user = ends
    target = user.blocks()
    for turn in range(1, 6):
        held = owner.blocks(turn, key=turn % 2)
        user.manager.pull_blocks(BlocksCacheKey(1, turn % 2), target.cache, [1], [turn])
        assert (target.data[:, turn] == held.data[:, 1]).all()
        owner.manager.unregister_cache(held.id)
        with failing(GONE, "pull_blocks", peer=1):
            user.manager.pull_blocks(BlocksCacheKey(1, turn % 2), target.cache, [1], [turn])
        with failing(GONE, "push_blocks", peer=1):
            user.manager.push_blocks(BlocksCacheKey(1, turn % 2), target.cache, [1], [turn])


def test_a_key_that_moves_to_a_cache_of_another_form(ends):
    """Item 44: what the old cache was is no reason to refuse the call."""
    owner, user = ends
    target, source = user.blocks(units=16), user.blocks(5, units=16)
    narrow = user.blocks(words=64)
    for turn in range(1, 4):
        small = owner.blocks(turn, key=0, units=4)
        user.manager.pull_blocks(BlocksCacheKey(1), target.cache, [3], [0])
        owner.manager.unregister_cache(small.id)
        hidden = owner.blocks(turn, key=0, accessible=False)
        with failing("LLM_PARAM_INVALID", "pull_blocks", f"cache {hidden.id}", peer=1):
            user.manager.pull_blocks(BlocksCacheKey(1), target.cache, [3], [0])
        owner.manager.unregister_cache(hidden.id)
        big = owner.blocks(turn, key=0, units=16)
        user.manager.pull_blocks(BlocksCacheKey(1), target.cache, [15], [15])
        assert (target.data[:, 15] == big.data[:, 15]).all()
        user.manager.push_blocks(BlocksCacheKey(1), source.cache, [0], [14])
        assert (big.data[:, 14] == source.data[:, 0]).all()
        owner.manager.unregister_cache(big.id)
        thin = owner.blocks(turn, key=0, words=64)
        user.manager.pull_blocks(BlocksCacheKey(1), narrow.cache, [1], [2])
        assert (narrow.data[:, 2] == thin.data[:, 1]).all()
        owner.manager.unregister_cache(thin.id)


def test_cache_keys_are_pulled_and_bound_again(ends):
    """Items 42 and 44: CacheKeys work with both settings."""
    owner, user = ends
    target = user.slots()
    for turn in range(1, 6):
        held = owner.slots(turn, keys=[CacheKey(1, 1), CacheKey(1, turn + 10)])
        user.manager.pull_cache(CacheKey(1, 1), target.cache)
        assert (target.data[:, 0] == held.data[:, 0]).all()
        with failing(GONE, "pull_cache", peer=1):
            user.manager.pull_cache(CacheKey(1, 1), target.cache)
        user.manager.pull_cache(CacheKey(1, turn + 10), target.cache, 1)
        assert (target.data[:, 1] == held.data[:, 1]).all()


def test_many_caches(ends):
    """Item 37: more than one read of the directory holds, and again after it was compacted."""
    owner, user = ends
    target = user.slots(tensors=1, units=1, words=4)
    caches = [owner.slots(number + 1, tensors=1, units=2, words=4) for number in range(200)]
    for number in (199, 0, 100):
        user.manager.pull_cache(caches[number].slot(1), target.cache)
        assert (target.data[0, 0] == caches[number].data[0, 1]).all()
    churned = caches[0]
    for turn in range(3000):  # each leaves two records behind
        data = churned.data
        owner.manager.unregister_cache(churned.id)
        churned = owner.slots(data=data, keys=[CacheKey(1, turn), CacheKey(1, turn + 10**6)])
        owner.held.pop()
        if turn % 500 == 0:
            user.manager.pull_cache(CacheKey(1, turn + 10**6), target.cache)
            assert (target.data[0, 0] == data[0, 1]).all()
    user.manager.pull_cache(caches[150].slot(), target.cache)
    assert (target.data[0, 0] == caches[150].data[0, 0]).all()
    with failing(GONE, "pull_cache", peer=1):
        user.manager.pull_cache(CacheKeyByIdAndIndex(1, caches[0].id), target.cache)


@pytest.mark.expects_log("now names cache")
def test_lookups_of_other_threads_hide_no_change(sides):
    """Item 55: a pull that begins after a registration sees it, whatever others look up at the
    same time; the cache that had the key before is still there, so that nothing else tells."""
    owner, user = sides
    target = user.blocks()
    stop = threading.Event()

    def miss():
        own = user.blocks()
        while not stop.is_set():
            succeeds_or(GONE, user.manager.pull_blocks, BlocksCacheKey(1, 99), own.cache)

    threads = [threading.Thread(target=miss) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    for thread in threads:
        thread.start()
    try:
        until = time.monotonic() + 0.7
        turn, held = 0, []
        while time.monotonic() < until:
            turn += 1
            held.append(owner.blocks(turn, key=0))
            user.manager.pull_blocks(BlocksCacheKey(1), target.cache, [1], [2])
            assert (target.data[:, 2] == held[-1].data[:, 1]).all(), turn
            if len(held) > 3:
                owner.manager.unregister_cache(held.pop(0).id)
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        for thread in threads:
            thread.join()
