"""A peer's word about own memory: the owner looks before it marks anything."""

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from llm_datadist import BlocksCacheKey, CacheDesc, DataType
from llm_datadist._engine.link.messages import MAX_RANGES, Faulted, Marked, encode
from support.instances import PAGE, Pages, eventually, failing, finalize, linked_sides, pattern
from support.userfault import silent_pages

KEY = BlocksCacheKey(1)
WORDS = PAGE // 8


@pytest.fixture(params=["host", "tcp"])
def three(request):
    """The owner of a cache, and two peers with one each; the second one lies."""
    sides = linked_sides(request.param, 3)
    remote = sides[0].blocks(1, key=0)
    local = [side.blocks(units=8) for side in sides[1:]]
    yield sides, remote, local
    finalize(*sides)


def engine_of(side):
    return side.instance._engine


def say(side, message):
    """Have a side say something to the first one, whether it is true or not."""
    engine = engine_of(side)
    engine.links.notify(engine.links.get(1, "test"), encode(message))


def settled(side):
    """Wait until a side has checked the memory of all notices."""
    notices = engine_of(side).fault_marks._notices
    eventually(lambda: notices._waiting == 0)


def entry_of(held):
    return engine_of(held.side).registry.get(held.id).ref


def addresses(held):
    return [(tensor.ctypes.data, tensor.nbytes) for tensor in held.data]


def test_a_lie_marks_nothing(three):
    (owner, honest, liar), remote, local = three
    for _ in range(3):
        say(liar, Faulted(entry_of(remote), tuple(addresses(remote))))
        settled(owner)
    time.sleep(0.05)
    assert owner.manager.faulted_ranges() == ()
    every = list(range(8))
    for side, cache in zip((honest, liar), local, strict=True):
        side.manager.pull_blocks(KEY, cache.cache, every, every)
        assert (cache.data == remote.data).all()


def test_a_peer_that_was_wrong_is_told(three):
    """It remembers what it met; the owner, which has looked, says that the memory is good."""
    (owner, honest, _), remote, (local, _) = three
    engine = engine_of(honest)
    link = engine.links.get(1, "test")
    link.data.marks.add(entry_of(remote), addresses(remote))
    with failing("LLM_SUSPECT_REMOTE_ERROR", "pull_blocks", "found at fault before", peer=1):
        honest.manager.pull_blocks(KEY, local.cache, [0], [0])
    say(honest, Faulted(entry_of(remote), tuple(addresses(remote))))
    settled(owner)
    eventually(lambda: not link.data.marks)
    honest.manager.pull_blocks(KEY, local.cache, [0], [0])


def test_what_a_peer_marks_is_its_own_memory(three):
    """Marks that a peer sends count on its own link only, whatever entry and range they name."""
    (owner, _, liar), remote, _ = three
    say(liar, Marked(entry_of(remote), tuple(addresses(remote))))
    link = engine_of(owner).links.get(3, "test")
    eventually(lambda: bool(link.data.marks))
    assert not engine_of(owner).links.get(2, "test").data.marks
    assert owner.manager.faulted_ranges() == ()


@pytest.mark.expects_log("met a fault in local memory", "were dropped")
def test_a_flood_of_lies_does_not_hide_the_truth(three):
    """The liar's notices are dropped beyond its share; another peer's is looked at."""
    (owner, honest, liar), remote, _ = three
    memory = Pages(1, 4)
    memory.data[:] = pattern(memory.shape, 1)
    paged = owner.blocks(data=memory.data, key=5)
    local = honest.blocks(tensors=1, units=4, words=WORDS)
    lie = Faulted(entry_of(remote), ((remote.data.ctypes.data, 8),) * MAX_RANGES)
    memory.unmap(0, 2)
    for _ in range(30):
        say(liar, lie)
    with failing("LLM_SUSPECT_REMOTE_ERROR", "pull_blocks", peer=1) as error:
        honest.manager.pull_blocks(BlocksCacheKey(1, 5), local.cache, [2], [2])
    eventually(lambda: owner.manager.faulted_ranges() == error.value.faults)
    owner.manager.unregister_cache(paged.id)
    memory.replace(0, 2)
    memory.close()


def test_memory_that_never_answers_keeps_nobody():
    """A notice about it: the owner's pulls, unregister, unlink and finalize go on."""
    with silent_pages(4) as address:
        if address is None:
            pytest.skip("the kernel or the user may not have userfaultfd")
        owner, peer = sides = linked_sides("tcp", 2)
        desc = CacheDesc(1, [4, WORDS], DataType.DT_UINT64)
        silent = owner.manager.register_blocks_cache(desc, [address], BlocksCacheKey(1, 9))
        good = owner.blocks(1, key=0)
        local = peer.blocks(units=8)
        entry = engine_of(owner).registry.get(silent.cache_id).ref
        say(peer, Faulted(entry, ((address, 4 * PAGE),)))
        notices = engine_of(owner).fault_marks._notices
        eventually(lambda: notices._waiting == 1)
        time.sleep(0.1)
        assert notices._waiting == 1, "the look is not kept; nothing is shown"
        began = time.monotonic()
        peer.manager.pull_blocks(KEY, local.cache, [0, 1], [0, 1])
        assert (local.data[:, :2] == good.data[:, :2]).all()
        owner.manager.unregister_cache(silent.cache_id)
        finalize(*sides)
        assert time.monotonic() - began < 2.5
    eventually(lambda: notices._waiting == 0)


def test_memory_that_never_answers_keeps_no_process_from_ending():
    program = """
        import os, sys, time
        from support.instances import linked_sides, PAGE
        from support.userfault import silent_pages
        from llm_datadist import BlocksCacheKey, CacheDesc, DataType
        from integration.test_notices import Faulted, say, engine_of
        held = silent_pages(4)
        address = held.__enter__()
        if address is None:
            print("none")
            sys.exit()
        owner, peer = linked_sides("tcp", 2)
        desc = CacheDesc(1, [4, PAGE // 8], DataType.DT_UINT64)
        cache = owner.manager.register_blocks_cache(desc, [address], BlocksCacheKey(1, 9))
        entry = engine_of(owner).registry.get(cache.cache_id).ref
        say(peer, Faulted(entry, ((address, PAGE),)))
        time.sleep(0.3)
        print("ends", flush=True)
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if ended.stdout.strip() == "none":
        pytest.skip("the kernel or the user may not have userfaultfd")
    assert (ended.returncode, ended.stdout) == (0, "ends\n"), ended.stderr
