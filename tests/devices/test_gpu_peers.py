"""Memory of a GPU between two processes of one host."""

import threading
import time

import pytest

from support.gpu_caches import EVERY, ORDER, SHAPE, OnGpu, cache_on
from support.instances import Side, failing, finalize, link, pattern
from support.owner_process import KEY, TIMEOUT_MS, OwnerProcess, device_facts

pytestmark = pytest.mark.gpu
WHERE = [("gpu", "gpu"), ("gpu", "host"), ("host", "gpu")]


@pytest.mark.parametrize(("remote", "local"), WHERE)
def test_pull(owner, user, gpu, remote, local):
    owner.ask("register", remote, 3)
    target = cache_on(local, user, gpu)
    user.manager.pull_blocks(KEY, target.cache, EVERY, ORDER)
    assert (target.data[:, ORDER] == pattern(SHAPE, 3)).all()


@pytest.mark.parametrize(("local", "remote"), WHERE)
def test_push(owner, user, gpu, local, remote):
    owner.ask("register", remote, 3)
    source = cache_on(local, user, gpu, seed=4)
    user.manager.push_blocks(KEY, source.cache, ORDER, EVERY)
    assert owner.ask("holds", 4, ORDER)


def test_an_allocation_is_mapped_once_and_until_it_is_unregistered(owner, user, gpu, stand_in):
    owner.ask("register", "gpu", 3)
    target = OnGpu(user, gpu)
    stand_in.fail("")  # counts from here on
    for _ in range(2):
        user.manager.pull_blocks(KEY, target.cache, EVERY, EVERY)
    assert stand_in.calls("cuIpcOpenMemHandle") == device_facts(user)["mapped_allocations"] == 2
    owner.ask("unregister")
    assert device_facts(user)["mapped_allocations"] == 0
    assert stand_in.calls("cuIpcCloseMemHandle") == 2


def test_memory_that_was_freed_and_allocated_again(owner, user, gpu):
    """The same addresses and key, and other bytes: no stale mapping is read."""
    owner.ask("register", "gpu", 3)
    target = OnGpu(user, gpu)
    user.manager.pull_blocks(KEY, target.cache, EVERY, EVERY)
    owner.ask("clean")
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_blocks", peer=1):
        user.manager.pull_blocks(KEY, target.cache, EVERY, EVERY)
    assert (target.data == pattern(SHAPE, 3)).all()
    owner.ask("register", "gpu", 5)
    user.manager.pull_blocks(KEY, target.cache, EVERY, EVERY)
    assert (target.data == pattern(SHAPE, 5)).all()


@pytest.mark.parametrize("local", ["gpu", "host"])
def test_an_uncorrectable_error(owner, user, gpu, stand_in, local):
    owner.ask("register", "gpu", 3)
    target = cache_on(local, user, gpu)
    if local == "gpu":
        stand_in.poison(target.addresses[0] + 100, 8)
    else:
        stand_in.fail("cuEventQuery:1:214")
    with failing("LLM_DEVICE_MEM_ERROR", "pull_blocks", peer=1):
        user.manager.pull_blocks(KEY, target.cache, EVERY, EVERY)
    stand_in.reset()
    user.manager.pull_blocks(KEY, target.cache, EVERY, EVERY)  # the link is good
    assert (target.data == pattern(SHAPE, 3)).all()


@pytest.mark.expects_log("cluster 1 is slower than it could: .* over the lanes, as ")
@pytest.mark.parametrize("call", ["pull_blocks", "push_blocks"])
def test_without_ipc_the_lanes_move_it(owner, user, gpu, stand_in, call):
    owner.ask("register", "gpu", 3)
    owner.ask("deny_ipc", "open")  # and it cannot map this process's memory
    mine = OnGpu(user, gpu, seed=4 if call == "push_blocks" else 0)
    stand_in.deny_ipc("open")
    if call == "pull_blocks":
        user.manager.pull_blocks(KEY, mine.cache, EVERY, ORDER)
        assert (mine.data[:, ORDER] == pattern(SHAPE, 3)).all()
        assert "cuIpcOpenMemHandle" in device_facts(user)["trouble"]
    else:
        user.manager.push_blocks(KEY, mine.cache, ORDER, EVERY)
        assert owner.ask("holds", 4, ORDER)
    assert device_facts(user)["over_lanes"] == 1
    stand_in.reset()
    owner.ask("deny_ipc", "")
    user.manager.pull_blocks(KEY, mine.cache, EVERY, EVERY)  # mapped again
    assert device_facts(user)["over_lanes"] == 1


def test_a_strict_instance_moves_nothing_over_lanes(owner, gpu, stand_in):
    strict = Side(3, "host", device="cuda", strict_backend=True)
    link(strict.instance, owner.address)
    owner.ask("register", "gpu", 3)
    target = OnGpu(strict, gpu)
    stand_in.deny_ipc("open")
    with failing("LLM_FAILED", "pull_blocks", "cuIpcOpenMemHandle", "NOT_SUPPORTED", peer=1):
        strict.manager.pull_blocks(KEY, target.cache, EVERY, EVERY)
    assert (target.data == 0).all()
    finalize(strict)


def test_a_device_that_hangs(owner, user, gpu, stand_in):
    owner.ask("register", "gpu", 3)
    target = OnGpu(user, gpu)
    stand_in.hang(0, hangs=True)
    begin = time.monotonic()
    with failing("LLM_TIMEOUT", "pull_blocks", peer=1):
        user.manager.pull_blocks(KEY, target.cache, EVERY, EVERY)
    assert time.monotonic() - begin >= TIMEOUT_MS / 1000
    local = user.blocks(seed=9, key=0)
    other = Side(3, "host", device="cuda")
    link(other.instance, user.address)
    copied = other.blocks()
    other.manager.pull_blocks(user.blocks_key(), copied.cache, [0], [1])  # another link goes on
    assert (copied.data[:, 1] == local.data[:, 0]).all()
    finalize(other)
    stand_in.reset()
    user.manager.pull_blocks(KEY, target.cache, EVERY, EVERY)
    assert (target.data == pattern(SHAPE, 3)).all()


def test_a_call_of_the_driver_that_hangs(owner, user, gpu, stand_in):
    owner.ask("register", "gpu", 3)
    target = OnGpu(user, gpu)
    stand_in.block_copies()
    with failing("LLM_TIMEOUT", "pull_blocks", peer=1):
        user.manager.pull_blocks(KEY, target.cache, EVERY, EVERY)
    user.manager.pull_blocks(KEY, target.cache, EVERY, EVERY)  # the next call has its own thread
    stand_in.reset()
    assert (target.data == pattern(SHAPE, 3)).all()


@pytest.mark.parametrize("where", ["gpu", "virtual"])
@pytest.mark.expects_log("link to cluster 1 .* lost")
def test_a_peer_that_dies_during_a_pull(driver, gpu, stand_in, where):
    """What it had stays mapped, and does not count."""
    before = stand_in.num_virtual()
    dying = OwnerProcess()
    user = Side(2, "host", device="cuda", sync_kv_timeout=20_000)
    try:
        link(user.instance, dying.address)
        dying.ask("register", where, 3)
        target = OnGpu(user, gpu)
        stand_in.delay(200_000)
        threading.Timer(0.1, dying.process.kill).start()
        with failing("LLM_LINK_FAILED", "pull_blocks", peer=1):
            user.manager.pull_blocks(KEY, target.cache, EVERY, ORDER)
    finally:
        stand_in.reset()
        finalize(user)
        dying.close()
    assert stand_in.num_virtual() == before


@pytest.mark.parametrize("where", ["gpu", "virtual"])
def test_the_owner_unregisters_during_a_pull(owner, user, gpu, stand_in, where):
    """The mapping goes before the call of the owner returns."""
    owner.ask("register", where, 3)
    target = OnGpu(user, gpu)
    stand_in.delay(200_000)
    ended = threading.Timer(0.1, owner.ask, ["unregister"])
    ended.start()
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_blocks", peer=1):
        user.manager.pull_blocks(KEY, target.cache, EVERY, ORDER)
    ended.join()
    assert device_facts(user)["mapped_allocations"] == 0
