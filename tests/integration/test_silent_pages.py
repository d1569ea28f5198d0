"""Memory of the other process that does not answer, or not to others, on the same-host path.

Rule: foreign memory is touched only by threads that no other waits for, and never without a way
out by the deadline. What only its owner can read is not at fault.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time

import numpy as np
import pytest

from llm_datadist import BlocksCacheKey
from llm_datadist._backends.outcomes import Code
from support.instances import PAGE, Side, failing, finalize, link, pattern
from support.setup import info_of
from support.userfault import silent_pages

KEY = BlocksCacheKey(1)
BLOCKS = 8
WORDS = PAGE // 8
TIMEOUT_S = 0.5
LATE_S = 1.0  # of a machine that has much else to do; the rule says 0.1
LIBC = ctypes.CDLL(None, use_errno=True)
SECRET_MEMORY = {"x86_64": 447, "aarch64": 447}.get(os.uname().machine)


@pytest.fixture
def three():
    """The owner of caches under test, and two peers with one each."""
    sides = [Side(number, "host", sync_kv_timeout=int(TIMEOUT_S * 1000)) for number in (1, 2, 3)]
    for side in sides[1:]:
        link(side.instance, sides[0].address)
    yield sides
    finalize(*sides)


@pytest.fixture
def silent():
    with silent_pages(BLOCKS, for_all=True) as address:
        if address is None:
            pytest.skip("userfaultfd for others' reads needs root (CAP_SYS_PTRACE)")
        yield words_at(address)


def words_at(address):
    memory = (ctypes.c_uint64 * (BLOCKS * WORDS)).from_address(address)
    return np.frombuffer(memory, np.uint64).reshape(1, BLOCKS, WORDS)


def timed(call, *arguments):
    began = time.monotonic()
    call(*arguments)
    return time.monotonic() - began


EVERY = list(range(BLOCKS))


def test_a_pull_of_silent_pages_ends_in_time_and_holds_nothing(three, silent):
    owner, one, other = three
    owner.blocks(data=silent, key=0)
    owner.blocks(7, key=1, tensors=1, words=WORDS)
    local, remote = (side.blocks(tensors=1, words=WORDS) for side in (one, other))
    before = local.data.copy()

    def pull():
        with failing("LLM_TIMEOUT", "pull_blocks", peer=1):
            one.manager.pull_blocks(KEY, local.cache, EVERY, EVERY)

    assert timed(pull) < TIMEOUT_S + LATE_S
    assert (local.data == before).all()
    for side, held in ((one, local), (other, remote)):
        side.manager.pull_blocks(BlocksCacheKey(1, 1), held.cache, EVERY, EVERY)
        assert (held.data == pattern((1, BLOCKS, WORDS), 7)).all(), "other memory is undisturbed"
    one.held.remove(local)
    assert timed(one.manager.unregister_cache, local.id) < LATE_S
    unlinked = one.instance.unlink_clusters
    info = [info_of(owner.address, owner.id)]
    assert timed(lambda: unlinked(info, 1000, True)) < LATE_S
    assert timed(finalize, one) < 2 * LATE_S


def test_the_owner_of_silent_pages_unregisters_and_unlinks_while_peers_ask(three, silent):
    owner, one, _ = three
    remote = owner.blocks(data=silent, key=0)
    local = one.blocks(tensors=1, words=WORDS)
    pulls = [
        threading.Thread(target=lambda: _fails(one.manager.pull_blocks, local)) for _ in range(4)
    ]
    for each in pulls:
        each.start()
    time.sleep(0.1)
    owner.held.remove(remote)
    assert timed(owner.manager.unregister_cache, remote.id) < LATE_S
    for each in pulls:
        each.join(TIMEOUT_S + LATE_S)
        assert not each.is_alive()
    assert timed(finalize, owner) < 2 * LATE_S


def _fails(call, local):
    with pytest.raises(Exception, match="LLM_"):
        call(KEY, local.cache, EVERY, EVERY)


def test_pushes_from_silent_pages_end_in_time_and_keep_no_other_peer_waiting(three, silent):
    owner, one, other = three
    remote = owner.blocks(key=0, tensors=1, words=WORDS)
    bad = one.blocks(data=silent)
    good = other.blocks(3, tensors=1, words=WORDS)

    def push():
        with failing("LLM_TIMEOUT", "push_blocks", peer=1):
            one.manager.push_blocks(KEY, bad.cache, EVERY, EVERY)

    pushes = [threading.Thread(target=push) for _ in range(4)]
    began = time.monotonic()
    for each in pushes:
        each.start()
    for _ in range(5):
        assert timed(other.manager.push_blocks, KEY, good.cache, EVERY, EVERY) < TIMEOUT_S
    assert (remote.data == good.data).all()
    for each in pushes:
        each.join()
    assert time.monotonic() - began < TIMEOUT_S + LATE_S
    one.held.remove(bad)
    assert timed(one.manager.unregister_cache, bad.id) < LATE_S


def test_doorbells_for_silent_pages_are_refused_at_once(three, silent):
    """A peer that does not look at its own pages first."""
    owner, one, other = three
    owner.blocks(key=0, tensors=1, words=WORDS)
    bad = one.blocks(data=silent)
    lanes = one.instance._engine.links.get(1, "test").data.lanes
    entry = one.instance._engine.registry.get(bad.id).ref
    target = owner.instance._engine.registry.get(owner.held[0].id)
    pushed = np.array((bad.data.ctypes.data, target.layout.starts[0], 64), np.uint64)
    for _ in range(8):
        deadline = time.monotonic_ns() + 2_000_000_000
        outcome = lanes._client.push(pushed, entry, target.ref, 0, deadline)
        assert outcome[0] == Code.SYSTEM
    asked = other.instance._engine.links.get(1, "test").data.lanes
    assert timed(asked.ping, time.monotonic_ns() + 1_000_000_000) < LATE_S


@pytest.mark.expects_log("pushes of bytes outside the cache")
def test_a_doorbell_for_bytes_outside_a_cache_is_refused_and_logged(three, caplog):
    owner, one, _ = three
    held = owner.blocks(key=0, tensors=1, words=WORDS)
    source = one.blocks(3, tensors=1, words=WORDS)
    lanes = one.instance._engine.links.get(1, "test").data.lanes
    entry = one.instance._engine.registry.get(source.id).ref
    target = owner.instance._engine.registry.get(held.id)
    outside = source.data.ctypes.data + source.data.nbytes
    pushed = np.array((outside, target.layout.starts[0], 64), np.uint64)
    deadline = time.monotonic_ns() + 2_000_000_000
    outcome = lanes._client.push(pushed, entry, target.ref, 0, deadline)
    assert outcome[0] == Code.DENIED
    owner.instance.unlink_clusters([info_of(one.address, one.id)], 1000)
    [warning] = [r.getMessage() for r in caplog.records if "outside the cache" in r.getMessage()]
    assert warning.startswith("cluster 2 sent 0 malformed frames, and 1 pushes")
    assert not held.data.any()


def test_pages_that_were_never_touched_are_pulled_and_pushed(three):
    owner, one, _ = three
    untouched = np.frombuffer(mmap.mmap(-1, BLOCKS * PAGE), np.uint64).reshape(1, BLOCKS, WORDS)
    owner.blocks(data=untouched, key=0)
    local = one.blocks(5, tensors=1, words=WORDS)
    one.manager.pull_blocks(KEY, local.cache, EVERY, EVERY)
    assert not local.data.any()
    local.data[:] = 9
    one.manager.pull_blocks(KEY, local.cache, EVERY, EVERY)
    assert not local.data.any()
    source = np.frombuffer(mmap.mmap(-1, BLOCKS * PAGE), np.uint64).reshape(1, BLOCKS, WORDS)
    empty = one.blocks(data=source)
    untouched[:] = 7
    one.manager.push_blocks(KEY, empty.cache, EVERY, EVERY)
    assert not untouched.any()
    assert "over the lanes" not in str(one.instance.describe_link(1))


@pytest.fixture
def secret():
    """Memory that only its own process can read."""
    fd = -1 if SECRET_MEMORY is None else LIBC.syscall(SECRET_MEMORY, 0)
    if fd < 0:
        pytest.skip("memfd_secret is not to be had here")
    os.ftruncate(fd, BLOCKS * PAGE)
    LIBC.mmap.restype = ctypes.c_void_p
    address = LIBC.mmap(None, BLOCKS * PAGE, 3, mmap.MAP_SHARED, fd, 0)  # for the process's life
    os.close(fd)
    words = words_at(address)
    words[:] = pattern(words.shape, 4)
    return words


def test_memory_that_only_its_owner_can_read_goes_over_the_lanes_and_is_not_at_fault(three, secret):
    owner, one, other = three
    owner.blocks(data=secret, key=0)
    local = one.blocks(tensors=1, words=WORDS)
    for _ in range(2):
        one.manager.pull_blocks(KEY, local.cache, EVERY, EVERY)
        assert (local.data == secret).all()
    assert "for 1 caches that only their owner can read" in str(one.instance.describe_link(1))
    one.manager.push_blocks(KEY, local.cache, EVERY, EVERY)
    target = other.blocks(key=0, tensors=1, words=WORDS)
    link(owner.instance, other.address)
    source = owner.held[0]
    for _ in range(2):
        owner.manager.push_blocks(BlocksCacheKey(3), source.cache, EVERY, EVERY)
    assert (target.data == secret).all()
    assert "for 1 caches that only their owner" in str(owner.instance.describe_link(3))
    for side in three:
        assert side.manager.faulted_ranges() == ()


def test_a_checked_pull_of_such_memory_goes_over_the_lanes_too(secret):
    sides = [Side(number, "host", checksum="crc32c") for number in (1, 2)]
    link(sides[1].instance, sides[0].address)
    owner, one = sides
    owner.blocks(data=secret, key=0)
    local = one.blocks(tensors=1, words=WORDS)
    one.manager.pull_blocks(KEY, local.cache, EVERY, EVERY)
    assert (local.data == secret).all()
    untouched = np.frombuffer(mmap.mmap(-1, BLOCKS * PAGE), np.uint64).reshape(1, BLOCKS, WORDS)
    owner.blocks(data=untouched, key=1)
    one.manager.pull_blocks(BlocksCacheKey(1, 1), local.cache, EVERY, EVERY)
    assert not local.data.any()
    finalize(*sides)
