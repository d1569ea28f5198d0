"""remap_registered_memory: checklist items 56 and 57."""

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
    Placement,
)
from llm_datadist.testing import PeerGroup
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
    replace,
    succeeds_or,
)

OPERATION = "remap_registered_memory"
DEVICE = Memtype.MEM_TYPE_DEVICE
UNITS = 4
WORDS = PAGE // 8
EVERY = list(range(UNITS))


def whole(held):
    """MemInfo of a cache's memory, tensor by tensor."""
    return [MemInfo(DEVICE, tensor.ctypes.data, tensor.nbytes) for tensor in held.data]


def paged(side, key=None, seed=0):
    """Register a blocks cache over pages of its own; one page a block."""
    pages = Pages(2, UNITS)
    held = side.blocks(data=pages.data, key=key)
    if seed:
        pages.data[:] = pattern(pages.shape, seed)
    return held, pages


def pulled(user, key):
    target = user.blocks(tensors=2, units=UNITS, words=WORDS)
    user.manager.pull_blocks(key, target.cache, EVERY, EVERY)
    return target.data


@pytest.fixture
def pages():
    """Make paged caches whose memory is unmapped with the test."""
    made = []

    def make(side, **kwargs):
        held, memory = paged(side, **kwargs)
        made.append((held, memory))
        return held, memory

    yield make
    for held, memory in made:
        if held.side.manager is not None:
            held.side.manager.unregister_cache(held.id)
        memory.close()


def test_forms_of_the_argument(sides):
    """Item 56: one, a list, a tuple; parts, the whole, neighbors in one, twice the same."""
    owner, user = sides
    held = owner.blocks(1, key=0, tensors=2, units=UNITS, words=WORDS)
    start, nbytes = held.data.ctypes.data, held.data.nbytes
    infos = whole(held)
    for argument in (
        infos[0],
        infos,
        tuple(infos),
        infos * 2,
        MemInfo(DEVICE, start, nbytes),  # the tensors are neighbors
        MemInfo(DEVICE, start + 17, 1),
        MemInfo(DEVICE, start + PAGE, 2 * PAGE),
    ):
        assert owner.manager.remap_registered_memory(argument) is None
        assert (pulled(user, BlocksCacheKey(1)) == held.data).all()


def test_host_caches_that_are_registered_can_be_named(sides):
    """Item 56: device memory is host memory where there is no accelerator."""
    owner, _ = sides
    held = owner.blocks(1, placement=Placement.HOST)
    owner.manager.remap_registered_memory(whole(held))


def test_without_a_link():
    """Item 57: with none, the call does the same for later ones, and local copies go on."""
    side, user = Side(1, "auto"), Side(2, "auto")
    try:
        held, pages = paged(side, key=0, seed=1)
        for unit in range(UNITS):
            pages.replace(0, unit)
        side.manager.remap_registered_memory(whole(held))
        side.manager.copy_blocks(held.cache, {1: [2]})
        assert (pages.data[1, 2] == pages.data[1, 1]).all()
        link(user.instance, side.address)
        assert (pulled(user, BlocksCacheKey(1)) == pages.data).all()
        side.clean()
        del held
        pages.close()
    finally:
        finalize(side, user)


def test_new_pages_are_what_peers_see(sides, pages):
    """Item 57: pulls and pushes in both directions, several times, without relinking."""
    owner, user = sides
    held, memory = pages(owner, key=0, seed=1)
    source = user.blocks(9, tensors=2, units=UNITS, words=WORDS)
    incarnation = user.instance.describe_link(1)["link_id"]
    for turn in range(2, 6):
        assert (pulled(user, BlocksCacheKey(1)) == memory.data).all()
        for tensor in range(2):
            for unit in range(UNITS):
                memory.replace(tensor, unit)
        memory.data[:] = pattern(memory.shape, turn)
        owner.manager.remap_registered_memory(whole(held))
        assert (pulled(user, BlocksCacheKey(1)) == memory.data).all()
        user.manager.push_blocks(BlocksCacheKey(1), source.cache, [0], [3])
        assert (memory.data[:, 3] == source.data[:, 0]).all()
        own = owner.blocks(tensors=2, units=UNITS, words=WORDS)
        owner.manager.copy_blocks(held.cache, {0: [1]})
        assert not own.data.any()
    assert user.instance.describe_link(1)["link_id"] == incarnation


def test_all_keys_go_on(sides):
    """Item 57: by id, by CacheKey; a key is not consumed by a remap, and only the range's
    caches are concerned."""
    owner, user = sides
    held = owner.slots(1, keys=[CacheKey(1, 1), CacheKey(1, 2)])
    other = owner.slots(2, keys=[CacheKey(1, 3)])
    target = user.slots()
    user.manager.pull_cache(CacheKey(1, 1), target.cache)
    owner.manager.remap_registered_memory(whole(held))
    user.manager.pull_cache(CacheKey(1, 2), target.cache, 1)
    user.manager.pull_cache(held.slot(5), target.cache, 2)
    user.manager.pull_cache(CacheKey(1, 3), target.cache, 3)
    assert (target.data[:, 1] == held.data[:, 1]).all()
    assert (target.data[:, 2] == held.data[:, 5]).all()
    assert (target.data[:, 3] == other.data[:, 0]).all()
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_cache", peer=1):
        user.manager.pull_cache(CacheKey(1, 1), target.cache)


def test_several_caches_over_the_range(sides, pages):
    """Item 57: all of them get the new pages."""
    owner, user = sides
    held, memory = pages(owner, key=0, seed=1)
    second = owner.blocks(data=memory.data, key=1)
    keys = [BlocksCacheKey(1, 0), BlocksCacheKey(1, 1)]
    for key in keys:
        assert (pulled(user, key) == memory.data).all()
    memory.replace(1, 2)
    memory.data[1, 2] = 7
    owner.manager.remap_registered_memory(MemInfo(DEVICE, memory.at(1, 2), PAGE))
    for key in keys:
        assert (pulled(user, key) == memory.data).all()
    assert second.id != held.id


def test_pool_memory(backend):
    """Item 57: pages of a pool, too; on links that are there and on later ones; and the pool's
    other caches go on."""
    owner, user, late = Side(1, backend, pool=1 << 20), Side(2, backend), Side(3, backend)
    desc = CacheDesc(2, [2, 16 * WORDS], DataType.DT_UINT64)
    try:
        link(user.instance, owner.address)
        cache = owner.manager.allocate_cache(desc)
        other = owner.manager.allocate_cache(CacheDesc(2, [2, 8], DataType.DT_UINT64))
        other.tensor(0)[:], other.tensor(1)[:] = 11, 12
        key = CacheKeyByIdAndIndex(1, cache.cache_id, 1)
        target = user.slots(tensors=2, units=1, words=16 * WORDS)
        for turn in range(1, 4):
            for tensor, address in enumerate(cache.tensor_addrs):
                replace(address, desc.size)
                cache.tensor(tensor)[:] = 10 * turn + tensor
            owner.manager.remap_registered_memory(
                [MemInfo(DEVICE, address, desc.size) for address in cache.tensor_addrs]
            )
            user.manager.pull_cache(key, target.cache)
            assert (target.data[:, 0, 0] == [10 * turn, 10 * turn + 1]).all()
            user.manager.push_cache(key, target.cache)
        link(late.instance, owner.address)
        local = late.slots(tensors=2, units=1, words=16 * WORDS)
        late.manager.pull_cache(key, local.cache)
        assert (local.data == target.data).all()
        small = late.slots(tensors=2, units=1, words=8)
        late.manager.pull_cache(CacheKeyByIdAndIndex(1, other.cache_id), small.cache)
        assert (small.data[:, 0, 3] == [11, 12]).all()
        # Freed and given out again, the pages serve as before.
        owner.manager.deallocate_cache(cache)
        again = owner.manager.allocate_cache(desc)
        again.tensor(0)[:], again.tensor(1)[:] = 71, 72
        user.manager.pull_cache(CacheKeyByIdAndIndex(1, again.cache_id), target.cache)
        assert (target.data[:, 0, 5] == [71, 72]).all()
    finally:
        finalize(owner, user, late)


def test_many_links(backend):
    """Item 57: every linked peer has dropped the old pages when the call returns."""
    sides = linked_sides(backend, 9)
    owner, users = sides[0], sides[1:]
    try:
        held, pages = paged(owner, key=0, seed=1)
        for user in users:
            assert (pulled(user, BlocksCacheKey(1)) == pages.data).all()
        for turn in range(2, 4):
            for unit in range(UNITS):
                pages.replace(0, unit)
            pages.data[:] = pattern(pages.shape, turn)
            owner.manager.remap_registered_memory(whole(held))
            for user in users:
                assert (pulled(user, BlocksCacheKey(1)) == pages.data).all()
        del held
        owner.clean()
        pages.close()
    finally:
        finalize(*sides)


def test_calls_at_once(backend):
    """Item 57: thread-safe, by both ends of a link at the same time."""
    errors = []
    sides = linked_sides(backend)
    held = [side.blocks(side.id, key=0) for side in sides]

    def remap(side, own):
        try:
            for _ in range(15):
                side.manager.remap_registered_memory(whole(own))
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=remap, args=pair)
        for pair in zip(sides, held, strict=True)
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    second = sides[1]
    target = second.blocks()
    second.manager.pull_blocks(BlocksCacheKey(1), target.cache, [0, 1], [0, 1])
    assert (target.data[:, :2] == held[0].data[:, :2]).all()
    finalize(*sides)


def test_transfers_meanwhile(sides):
    """Items 55 and 57: of the remapped cache: right or LLM_KV_CACHE_NOT_EXIST; of others: right."""
    owner, user = sides
    held, other = owner.blocks(1, key=0), owner.blocks(2, key=1)
    source = user.blocks(1)
    target = user.blocks()
    stop = threading.Event()

    def remap():
        while not stop.is_set():
            owner.manager.remap_registered_memory(whole(held))
            user.manager.remap_registered_memory(whole(source))
            time.sleep(0.001)

    remapper = threading.Thread(target=remap)
    remapper.start()
    done = 0
    try:
        until = time.monotonic() + 0.5
        while time.monotonic() < until or done < 10:
            target.data[:] = 0
            arguments = (BlocksCacheKey(1), target.cache, [1], [2])
            if succeeds_or("LLM_KV_CACHE_NOT_EXIST", user.manager.pull_blocks, *arguments):
                assert (target.data[:, 2] == held.data[:, 1]).all()
                done += 1
            arguments = (BlocksCacheKey(1), source.cache, [3], [3])
            succeeds_or("LLM_KV_CACHE_NOT_EXIST", user.manager.push_blocks, *arguments)
            user.manager.pull_blocks(BlocksCacheKey(1, 1), target.cache, [1], [2])
            assert (target.data[:, 2] == other.data[:, 1]).all()
    finally:
        stop.set()
        remapper.join()
    assert (held.data == pattern(held.data.shape, 1)).all()


def serve(member, backend):
    """Body: link to the group's owner, pull once, and wait."""
    side = Side(3, backend, listen=False)
    link(side.instance, member.wait_for("owner"))
    target = side.blocks(tensors=2, units=UNITS, words=WORDS)
    side.manager.pull_blocks(BlocksCacheKey(1), target.cache, EVERY, EVERY)
    member.set_event("pulled")
    member.wait_end()
    finalize(side)


@pytest.mark.expects_log("no answer to remap|loses its link|peer|lost")
def test_a_frozen_peer_loses_its_link(backend):
    """Item 57: the call keeps its bound and succeeds; other links are as before."""
    owner, user = Side(1, backend, sync_kv_timeout=400), Side(2, backend)
    try:
        held, pages = paged(owner, key=0, seed=1)
        link(user.instance, owner.address)
        with PeerGroup() as group:
            group.set_event("owner", list(owner.address))
            peer = group.start(serve, backend)
            group.wait_for("pulled")
            peer.freeze()
            start = time.monotonic()
            owner.manager.remap_registered_memory(whole(held))
            took = time.monotonic() - start
            assert took < 0.4 + 1
            assert not succeeds_or("LLM_NOT_YET_LINK", owner.instance.describe_link, 3)
            assert (pulled(user, BlocksCacheKey(1)) == pages.data).all()
            start = time.monotonic()
            owner.manager.remap_registered_memory(whole(held))  # it waits for no peer any more
            assert time.monotonic() - start < 0.4
            peer.thaw()
            eventually(lambda: peer.exit is None)
        del held
        owner.clean()
        pages.close()
    finally:
        finalize(owner, user)


@pytest.mark.expects_log("no answer to remap|loses its link|peer|lost")
def test_a_dead_peer_does_not_hold_it_up(backend):
    """Item 57: killed just before, perhaps not noticed yet."""
    owner = Side(1, backend, sync_kv_timeout=5000)
    try:
        held = owner.blocks(1, key=0, tensors=2, units=UNITS, words=WORDS)
        with PeerGroup() as group:
            group.set_event("owner", list(owner.address))
            peer = group.start(serve, backend)
            group.wait_for("pulled")
            peer.kill()
            start = time.monotonic()
            owner.manager.remap_registered_memory(whole(held))
            assert time.monotonic() - start < 3
            peer.wait()
        eventually(lambda: not succeeds_or("LLM_NOT_YET_LINK", owner.instance.describe_link, 3))
    finally:
        finalize(owner)


def test_own_caches_as_the_local_side(sides, pages):
    """Item 57: the remapped cache pulls and pushes; transfers in flight were notified."""
    owner, user = sides
    held, memory = pages(user)
    source = owner.blocks(5, key=0, tensors=2, units=UNITS, words=WORDS)
    for _ in range(3):
        memory.replace(0, 1)
        user.manager.remap_registered_memory(whole(held))
        user.manager.pull_blocks(BlocksCacheKey(1), held.cache, EVERY, EVERY)
        assert (memory.data == source.data).all()
        user.manager.push_blocks(BlocksCacheKey(1), held.cache, [1], [1])
        assert np.array_equal(memory.data, source.data)
