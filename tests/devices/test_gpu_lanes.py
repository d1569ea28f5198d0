"""Memory of a GPU over lanes: it passes through pinned memory at its side of the link."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from llm_datadist._plan import Plan
from support.gpu import Gpu
from support.gpu_caches import EVERY, ORDER, SHAPE, OnGpu, cache_on
from support.instances import Side, failing, finalize, link, pattern, zeros
from support.owner_process import KEY, OwnerProcess

pytestmark = pytest.mark.gpu

WHERE = [("gpu", "gpu"), ("gpu", "host"), ("host", "gpu")]
SHORT_MS = 1000
LANES = 4


@pytest.fixture
def sides(make):
    return make("tcp", device="cuda")


@pytest.fixture
def short(make):
    """Sides whose calls may take less time than a hanging GPU."""
    return make("tcp", device="cuda", sync_kv_timeout=SHORT_MS)


def pull(user, cache, order=EVERY):
    user.manager.pull_blocks(KEY, cache.cache, EVERY, order)


def push(user, cache, order=EVERY):
    user.manager.push_blocks(KEY, cache.cache, order, EVERY)


def raw(sides, source, address, sizes, gaps):
    """Push ranges of the first tensor of `source` to bare addresses; returns the plan."""
    _, user = sides
    engine = user.instance._engine
    local = engine.registry.find("test", source.cache)
    begins = np.cumsum([0, *sizes[:-1]], dtype=np.uint64) + np.arange(len(sizes)) * np.uint64(gaps)
    length = np.array(sizes, np.uint64)
    begins = begins.astype(np.uint64)
    plan = Plan.of(begins + local.layout.addrs[0], begins + np.uint64(address), length, sum(sizes))
    engine.transfers.push_raw("push", 1, local, plan, None)
    return begins, length


@pytest.mark.parametrize(("remote", "local"), WHERE)
def test_pull(sides, gpu, remote, local):
    owner, user = sides
    source = cache_on(remote, owner, gpu, seed=3, key=0)
    target = cache_on(local, user, gpu)
    pull(user, target, ORDER)
    assert (target.data[:, ORDER] == source.data).all()
    assert user.instance.describe_link(1)["backend"] == {"host": "tcp", "device": "tcp"}


@pytest.mark.parametrize(("local", "remote"), WHERE)
def test_push(sides, gpu, local, remote):
    owner, user = sides
    target = cache_on(remote, owner, gpu, key=0)
    source = cache_on(local, user, gpu, seed=4)
    push(user, source, ORDER)
    assert (target.data == source.data[:, ORDER]).all()


def test_one_block_each_way(sides, gpu):
    """Less than the payload that a request carries itself."""
    owner, user = sides
    source, target = OnGpu(owner, gpu, seed=5, key=0), OnGpu(user, gpu)
    user.manager.pull_blocks(KEY, target.cache, [7], [9])
    expected = zeros(*SHAPE)
    expected[:, 9] = source.data[:, 7]
    assert (target.data == expected).all()
    user.manager.push_blocks(KEY, target.cache, [9], [11])
    assert (source.data[:, 11] == pattern(SHAPE, 5)[:, 7]).all()


@pytest.mark.parametrize(
    "sizes",
    [[8], [(1 << 20) - 8, 16], [(3 << 20) + 40], [8 + 16 * i for i in range(600)]],
    ids=["word", "across slots", "odd", "many"],
)
def test_sizes_that_are_no_multiple_of_a_slot(sides, gpu, sizes):
    owner, user = sides
    target, source = OnGpu(owner, gpu, seed=3), OnGpu(user, gpu, seed=6)
    begins, length = raw(sides, source, target.addresses[0], sizes, 8)
    moved = np.zeros(source.data[0].size, bool)
    for begin, size in zip(begins.tolist(), length.tolist(), strict=True):
        moved[begin // 8 : (begin + size) // 8] = True
    expected = np.where(moved, source.data[0].ravel(), pattern(SHAPE, 3)[0].ravel())
    assert (target.data[0].ravel() == expected).all()
    assert (target.data[1] == pattern(SHAPE, 3)[1]).all()


@pytest.mark.parametrize("call", [pull, push])
def test_checksums(make, gpu, call):
    owner, user = make("tcp", device="cuda", checksum="crc32c")
    source, target = OnGpu(owner, gpu, seed=3, key=0), OnGpu(user, gpu, seed=4)
    call(user, target)
    assert (source.data == target.data).all()
    assert user.instance.describe_link(1)["checksum"] == "crc32c"


def test_pinned_memory_is_bounded_and_freed_with_the_link(sides, gpu, stand_in):
    owner, user = sides
    source, target = OnGpu(owner, gpu, seed=3, key=0), OnGpu(user, gpu)
    stand_in.fail("")  # counts from here on
    host = owner.blocks(seed=9, key=1), user.blocks()
    user.manager.pull_blocks(owner.blocks_key(1), host[1].cache, [0], [0])
    assert stand_in.calls("cuMemHostAlloc") == 0
    for _ in range(3):
        pull(user, target)
        push(user, target)
    allocated = stand_in.calls("cuMemHostAlloc")
    assert 1 <= allocated <= 2 * LANES  # one at each end of each lane
    assert stand_in.calls("cuMemFreeHost") == 0
    finalize(*sides)
    while stand_in.calls("cuMemFreeHost") < allocated:
        time.sleep(0.001)
    assert (source.data == pattern(SHAPE, 3)).all()


def test_no_pinned_memory(sides, gpu, stand_in):
    owner, user = sides
    OnGpu(owner, gpu, seed=3, key=0)
    target = OnGpu(user, gpu)
    stand_in.fail("cuMemHostAlloc:*:2")
    with failing("LLM_FAILED", "pull_blocks", "Cannot allocate memory", peer=1):
        pull(user, target)
    stand_in.reset()
    pull(user, target)
    assert (target.data == pattern(SHAPE, 3)).all()


@pytest.fixture
def other_gpu(driver, stand_in):
    one = Gpu(driver, 1)
    yield one
    one.close()


@pytest.mark.parametrize(
    ("call", "side", "status"),
    [
        (pull, "local", "LLM_DEVICE_MEM_ERROR"),
        (pull, "remote", "LLM_SUSPECT_REMOTE_ERROR"),
        (push, "local", "LLM_DEVICE_MEM_ERROR"),
        (push, "remote", "LLM_SUSPECT_REMOTE_ERROR"),
    ],
)
def test_an_uncorrectable_error_is_a_fault_of_its_side(
    make, gpu, other_gpu, stand_in, call, side, status
):
    """Each side has a GPU: the error ends all use of one."""
    owner, user = make("tcp", device="cuda")
    source, target = OnGpu(owner, other_gpu, seed=3, key=0), OnGpu(user, gpu, seed=4)
    words = owner.blocks(seed=9, key=1), user.blocks()
    bad = target if side == "local" else source
    stand_in.poison(bad.addresses[0] + 100, 8)
    with failing(status, f"{call.__name__}_blocks", peer=1):
        call(user, target)
    user.manager.pull_blocks(owner.blocks_key(1), words[1].cache, [0], [1])  # host memory goes on
    assert (words[1].data[:, 1] == words[0].data[:, 0]).all()
    stand_in.reset()
    call(user, target)  # the link is good
    assert (source.data == target.data).all()


@pytest.mark.parametrize("call", [pull, push])
def test_a_gpu_that_hangs(short, gpu, stand_in, call):
    owner, user = short
    source, target = OnGpu(owner, gpu, seed=3, key=0), OnGpu(user, gpu, seed=4)
    words = owner.blocks(seed=9, key=1), user.blocks()
    stand_in.hang(0, hangs=True)
    begin = time.monotonic()
    with failing("LLM_TIMEOUT", f"{call.__name__}_blocks", peer=1):
        call(user, target)
    assert time.monotonic() - begin >= SHORT_MS / 1000
    user.manager.pull_blocks(owner.blocks_key(1), words[1].cache, [0], [1])
    assert (words[1].data[:, 1] == words[0].data[:, 0]).all()
    stand_in.reset()
    user.manager.pull_blocks(KEY, target.cache, [1], [1])
    assert (source.data[:, 1] == target.data[:, 1]).all()


@pytest.mark.parametrize("call", [pull, push])
def test_nothing_lands_after_a_timeout(make, gpu, stand_in, call):
    """Gathering and scattering a chunk take longer than the call may."""
    owner, user = make("tcp", device="cuda", sync_kv_timeout=30)
    source, target = OnGpu(owner, gpu, seed=3, key=0), OnGpu(user, gpu, seed=4)
    written = target if call is pull else source
    stand_in.delay(20_000)
    with failing("LLM_TIMEOUT", f"{call.__name__}_blocks", peer=1):
        call(user, target)
    stand_in.delay(0)
    before = written.data  # waits for nothing but its own copy
    gpu.free(gpu.allocate(4096))  # waits for all streams
    assert (written.data == before).all()


def test_a_driver_that_hangs_holds_up_neither_a_link_nor_finalize(short, gpu, stand_in):
    owner, user = short
    OnGpu(owner, gpu, seed=3, key=0)
    target = OnGpu(user, gpu)
    words = owner.blocks(seed=9, key=1)
    stand_in.block("cuMemcpyAsync:1")
    with failing("LLM_TIMEOUT", "pull_blocks", peer=1):
        pull(user, target)
    other = Side(3, "tcp", device="cuda")
    link(other.instance, owner.address)
    copied = other.blocks()
    other.manager.pull_blocks(owner.blocks_key(1), copied.cache, [0], [1])
    assert (copied.data[:, 1] == words.data[:, 0]).all()
    finalize(other, *short)
    stand_in.reset()


def test_a_cache_that_is_unregistered_during_a_pull(sides, gpu, stand_in):
    owner, user = sides
    source, target = OnGpu(owner, gpu, seed=6, key=0), OnGpu(user, gpu)
    stand_in.delay(20_000)
    ended = threading.Timer(0.05, owner.manager.unregister_cache, [source.cache.cache_id])
    ended.start()
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_blocks", peer=1):
        pull(user, target, ORDER)
    ended.join()


def test_unregistering_is_final_for_a_push(sides, gpu, stand_in):
    """When it returns, no copy into the memory is under way."""
    owner, user = sides
    target = OnGpu(owner, gpu, seed=3, key=0)
    source = OnGpu(user, gpu, seed=4)
    stand_in.delay(20_000)
    found = []

    def end():
        owner.manager.unregister_cache(target.cache.cache_id)
        stand_in.delay(0)
        found.append(target.data)

    ended = threading.Timer(0.05, end)
    ended.start()
    with failing("LLM_KV_CACHE_NOT_EXIST", "push_blocks", peer=1):
        push(user, source, ORDER)
    ended.join()
    gpu.free(gpu.allocate(4096))
    assert (target.data == found[0]).all()


@pytest.fixture
def dying(driver):
    one = OwnerProcess("tcp")
    yield one
    one.close()


@pytest.fixture
def user(gpu, dying):
    side = Side(2, "tcp", device="cuda", sync_kv_timeout=5000)
    link(side.instance, dying.address)
    dying.ask("register", "gpu", 3)
    yield side
    finalize(side)


@pytest.mark.expects_log("link to cluster 1 .* lost")
@pytest.mark.parametrize("call", [pull, push])
def test_a_peer_that_dies(dying, user, gpu, stand_in, call):
    target = OnGpu(user, gpu, seed=4)
    stand_in.delay(20_000)
    threading.Timer(0.05, dying.process.kill).start()
    with failing("LLM_LINK_FAILED", f"{call.__name__}_blocks", peer=1):
        call(user, target, ORDER)
    stand_in.reset()


def test_a_frozen_peer(dying, user, gpu):
    target = OnGpu(user, gpu)
    pull(user, target)
    late = Side(3, "tcp", device="cuda", sync_kv_timeout=SHORT_MS)
    link(late.instance, dying.address)
    mine = OnGpu(late, gpu, seed=5)
    os.kill(dying.process.pid, signal.SIGSTOP)
    try:
        with failing("LLM_TIMEOUT", "pull_blocks", peer=1):
            pull(late, mine)
        assert (mine.data == pattern(SHAPE, 5)).all()
    finally:
        os.kill(dying.process.pid, signal.SIGCONT)
    pull(user, target, ORDER)
    finalize(late)


def test_a_peer_without_a_gpu(make, gpu):
    """Same host: the lanes are the only path, and describe_link says why."""
    (owner,) = make("host", 1, device="cuda")
    other = Side(2, "host")
    link(other.instance, owner.address)
    source, target = (
        OnGpu(owner, gpu, seed=3, key=0),
        other.blocks(tensors=SHAPE[0], units=SHAPE[1], words=SHAPE[2]),
    )
    pull(other, target, ORDER)
    assert (target.data[:, ORDER] == source.data).all()
    push(other, target, EVERY)
    assert (source.data == target.data).all()
    for side, peer in ((owner, 2), (other, 1)):
        facts = side.instance.describe_link(peer)
        assert facts["backend"] == {"host": "host", "device": "tcp"}
        assert "cuda" in facts["why_device"]
    finalize(other)
