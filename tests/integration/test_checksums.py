"""End-to-end checks: what differs between the two sides after a transfer is never success."""

import threading
import time

import numpy as np
import pytest
from msgspec.structs import replace

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LayerSynchronizer,
    LLMException,
    LLMStatusCode,
    TransferConfig,
)
from llm_datadist._engine.transfer import checksums
from llm_datadist._plan import Plan
from llm_datadist.testing import FaultPolicy, FaultRule, inject_faults
from support.instances import LASTING, Side, failing, finalize, link, linked_sides, pattern

UNITS = 24
WORDS = 8192  # blocks of 64 KiB
EVERY = list(range(UNITS))
SHAPE = {"tensors": 4, "units": UNITS, "words": WORDS}


class Ready(LayerSynchronizer):
    def synchronize_layer(self, layer_index, timeout_in_millis):
        return True


@pytest.fixture(scope="module")
def linked(backend):
    """Two sides; the second checks the transfers that it makes, the first does not."""
    owner = Side(1, backend, pool=16 << 20, **LASTING)
    user = Side(2, backend, pool=16 << 20, checksum="crc32c", **LASTING)
    link(user.instance, owner.address)
    warm = [side.blocks(key=0, **SHAPE) for side in (owner, user)]
    user.manager.pull_blocks(BlocksCacheKey(1), warm[1].cache, EVERY, EVERY)
    user.manager.push_blocks(BlocksCacheKey(1), warm[1].cache, EVERY, EVERY)
    owner.manager.push_blocks(BlocksCacheKey(2), warm[0].cache, EVERY, EVERY)
    owner.clean()
    user.clean()
    yield owner, user
    finalize(owner, user)


@pytest.fixture
def spoil(linked):
    """Make the next transfers of the checking side go wrong: give it what to do after each.

    Bytes that have arrived are spoilt before anybody looks at them, so that a read and its checksum
    are two steps here.
    """
    _, user = linked
    channel = user.instance._engine.links.get(1).data.channel
    run = channel.run

    def spoil(change):
        def spoilt(transfer):
            outcome = run(transfer)
            change(transfer)
            return outcome

        channel.run = spoilt
        channel.reads_and_sums = False

    yield spoil
    channel.__dict__.pop("run", None)
    channel.__dict__.pop("reads_and_sums", None)


@pytest.fixture
def misread(linked):
    """Make reads of the checking side bring other blocks: give it which, and where from instead."""
    _, user = linked
    channel = user.instance._engine.links.get(1).data.channel
    changed = {}

    def wrong(transfer):
        remote = transfer.remote.copy()
        for requested, instead in changed.items():
            remote[transfer.remote == requested] = instead
        plan = Plan.of(transfer.local, remote, transfer.length, transfer.total_bytes)
        return replace(transfer, plan=plan)

    run, read_and_sum = channel.run, channel.read_and_sum
    channel.run = lambda transfer: run(wrong(transfer))
    channel.read_and_sum = lambda transfer: read_and_sum(wrong(transfer))
    yield changed
    del channel.run, channel.read_and_sum


def counters(side, cluster_id):
    return side.instance.describe_link(cluster_id)["counters"]


def test_the_link_says_whether_it_is_checked(linked):
    owner, user = linked
    assert user.instance.describe_link(1)["checksum"] == "crc32c"
    assert owner.instance.describe_link(2)["checksum"] == "off"


def test_checked_transfers_move_the_right_bytes(sides):
    owner, user = sides
    source = owner.blocks(1, key=0, **SHAPE)
    target = user.blocks(**SHAPE)
    before = counters(user, 1)
    remote = EVERY[::-1]
    user.manager.pull_blocks(BlocksCacheKey(1), target.cache, EVERY, remote)
    assert np.array_equal(target.data[:, remote], source.data)
    target.data[:] = pattern(target.data.shape, 5)
    user.manager.push_blocks(BlocksCacheKey(1), target.cache, [3, 0], [1, 2])
    assert np.array_equal(source.data[:, [1, 2]], target.data[:, [3, 0]])
    user.manager.pull_blocks(BlocksCacheKey(1), target.cache, [], [])
    raw = TransferConfig(1, [tensor.ctypes.data for tensor in source.data])
    task = user.manager.transfer_cache_async(target.cache, Ready(), [raw], [4, 9], [9, 4])
    assert task.synchronize() is LLMStatusCode.LLM_SUCCESS
    assert np.array_equal(source.data[:, [9, 4]], target.data[:, [4, 9]])
    after = counters(user, 1)
    assert after["failures"] == before["failures"]
    assert after["checksum_mismatches"] == before["checksum_mismatches"]


def test_checked_slots_and_pools(sides):
    owner, user = sides
    desc = CacheDesc(2, [2, 300_000], DataType.DT_UINT64)  # 2.4 MB a slot
    pooled = owner.manager.allocate_cache(desc, [CacheKey(1, 5)])
    for number in range(2):
        pooled.tensor(number)[:] = pattern((2, 300_000), number + 1)
    target = user.slots(tensors=2, units=2, words=300_000)
    key = CacheKeyByIdAndIndex(1, pooled.cache_id, 1)
    user.manager.pull_cache(key, target.cache, 1)
    assert (target.data[0, 1] == pooled.tensor(0)[1]).all()
    user.manager.pull_cache(CacheKey(1, 5), target.cache)
    assert (target.data[1, 0] == pooled.tensor(1)[0]).all()
    target.data[:] += 1
    user.manager.push_cache(key, target.cache)
    assert (pooled.tensor(1)[1] == target.data[1, 0]).all()
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_cache", peer=1):
        user.manager.pull_cache(CacheKey(1, 5), target.cache)
    owner.manager.deallocate_cache(pooled)


@pytest.mark.parametrize("operation", ["pull", "push"])
def test_any_byte_that_is_another_is_found(sides, operation):
    """A data path that says that all went well, and has changed one byte somewhere."""
    owner, user = sides
    remote = owner.blocks(1, key=0, **SHAPE)
    local = user.blocks(2, **SHAPE)
    call = user.manager.pull_blocks if operation == "pull" else user.manager.push_blocks
    target = local if operation == "pull" else remote
    call(BlocksCacheKey(1), local.cache, EVERY, EVERY)  # the directory is known from here on
    for seed in range(8):
        policy = FaultPolicy([FaultRule("corrupt", nth=1)], seed=seed)
        with (
            inject_faults(user.instance, policy),
            pytest.raises(LLMException, match="crc32c") as caught,
        ):
            call(BlocksCacheKey(1), local.cache, EVERY, EVERY)
        (fault,) = caught.value.faults
        different = np.argwhere((local.data != remote.data).any(axis=2)[fault.tensor_index])
        assert fault.block in different
        assert fault.cache_id == target.id
    call(BlocksCacheKey(1), local.cache, EVERY, EVERY)
    assert np.array_equal(local.data, remote.data)


def test_a_pull_that_went_wrong_names_its_blocks(sides, spoil):
    """All of them in the segment at fault, and no others; later calls are as before."""
    owner, user = sides
    source = owner.blocks(1, key=0, **SHAPE)
    target = user.blocks(**SHAPE)
    spoilt = {(0, 7), (0, 9), (1, 0)}

    def change(_):
        for tensor, block in spoilt:
            target.data[tensor, block, 100] = 3

    spoil(change)
    before = counters(user, 1)
    with failing("LLM_FAILED", "pull_blocks", "crc32c", f"cache {target.id}", peer=1) as caught:
        user.manager.pull_blocks(BlocksCacheKey(1), target.cache, EVERY, EVERY)
    faults = caught.value.faults
    assert {(fault.tensor_index, fault.block) for fault in faults} == spoilt
    for fault in faults:
        assert (fault.cluster_id, fault.cache_id, fault.slot) == (2, target.id, None)
        assert fault.addr == target.data[fault.tensor_index, fault.block].ctypes.data
        assert fault.size == WORDS * 8
    after = counters(user, 1)
    assert after["checksum_mismatches"] == before["checksum_mismatches"] + 1
    assert after["failures"] == before["failures"] + 1
    assert user.manager.faulted_ranges() == owner.manager.faulted_ranges() == ()
    spoilt.clear()
    user.manager.pull_blocks(BlocksCacheKey(1), target.cache, EVERY, EVERY)
    assert np.array_equal(target.data, source.data)


def test_a_pull_that_reads_elsewhere_names_its_block(sides, misread):
    """As the data path moves bytes and takes their checksums, at one go where it does that."""
    owner, user = sides
    source = owner.blocks(1, key=0, **SHAPE)
    target = user.blocks(**SHAPE)
    order = EVERY[1::2] + EVERY[::2]  # no two neighbors in one descriptor
    misread[source.data[2, 7].ctypes.data] = source.data[1, 3].ctypes.data
    with failing("LLM_FAILED", "pull_blocks", "crc32c", f"cache {target.id}", peer=1) as caught:
        user.manager.pull_blocks(BlocksCacheKey(1), target.cache, EVERY, order)
    (fault,) = caught.value.faults
    assert (fault.tensor_index, fault.block) == (2, order[7])
    misread.clear()
    user.manager.pull_blocks(BlocksCacheKey(1), target.cache, EVERY, order)
    assert np.array_equal(target.data[:, order], source.data)


def test_transfers_of_many_segments(sides, spoil, monkeypatch):
    """Each block in its place, wherever the bounds of segments and of questions are."""
    owner, user = sides
    source = owner.blocks(1, key=0, **SHAPE)
    target = user.blocks(**SHAPE)
    monkeypatch.setattr(checksums, "SEGMENT_BYTES", 3 * WORDS * 8)
    monkeypatch.setattr(checksums, "WINDOW_BYTES", 7 * WORDS * 8)
    for order in (EVERY, EVERY[::-1], EVERY[1::2] + EVERY[::2]):
        target.data[:] = 0
        user.manager.pull_blocks(BlocksCacheKey(1), target.cache, EVERY, order)
        assert np.array_equal(target.data[:, order], source.data)
        user.manager.push_blocks(BlocksCacheKey(1), target.cache, EVERY, order)
        assert np.array_equal(source.data[:, order], target.data)
    for tensor, block in ((0, 0), (1, 6), (2, 7), (3, UNITS - 1)):

        def change(_, place=(tensor, block, 5)):
            target.data[place] = 1

        spoil(change)
        with failing("LLM_FAILED", "pull_blocks", peer=1) as caught:
            user.manager.pull_blocks(BlocksCacheKey(1), target.cache, EVERY, EVERY)
        found = {(fault.tensor_index, fault.block) for fault in caught.value.faults}
        assert found == {(tensor, block)}


def test_a_push_that_went_wrong_names_the_peers_blocks(sides, spoil):
    owner, user = sides
    target = owner.blocks(1, key=0, **SHAPE)
    source = user.blocks(2, **SHAPE)

    def change(_):
        target.data[1, 5, 0] = 3

    spoil(change)
    with failing("LLM_FAILED", "push_blocks", f"cache {target.id}", "block 5", peer=1) as caught:
        user.manager.push_blocks(BlocksCacheKey(1), source.cache, EVERY, EVERY)
    (fault,) = caught.value.faults
    assert (fault.cluster_id, fault.cache_id) == (1, target.id)
    assert (fault.tensor_index, fault.block) == (1, 5)


@pytest.mark.expects_log("layer")
@pytest.mark.leaves_resources("threads of the module's instances wait for more")
def test_raw_pushes_that_went_wrong(sides, spoil):
    owner, user = sides
    target = owner.blocks(1, **SHAPE)
    source = user.blocks(2, **SHAPE)

    def change(_):
        target.data[1, 5, 0] = 3

    spoil(change)
    raw = TransferConfig(1, [tensor.ctypes.data for tensor in target.data])
    task = user.manager.transfer_cache_async(source.cache, Ready(), [raw], [5, 6], [5, 6])
    assert task.get_results() == [LLMStatusCode.LLM_FAILED]
    task = user.manager.transfer_cache_async(source.cache, Ready(), [raw], [6], [6])
    assert task.get_results() == [LLMStatusCode.LLM_SUCCESS]


def test_a_key_is_not_consumed_by_bytes_that_differ(sides, spoil):
    owner, user = sides
    source = owner.slots(1, keys=[CacheKey(1, 7)], units=1, words=64)
    target = user.slots(units=1, words=64)
    wrong = [(3, 9)]

    def change(_):
        for tensor, word in wrong:
            target.data[tensor, 0, word] = 1

    spoil(change)
    with failing("LLM_FAILED", "pull_cache", "tensor 3, slot 0", peer=1):
        user.manager.pull_cache(CacheKey(1, 7), target.cache)
    wrong.clear()
    user.manager.pull_cache(CacheKey(1, 7), target.cache)
    assert np.array_equal(target.data, source.data)


@pytest.mark.parametrize("operation", ["pull", "push"])
def test_a_source_that_is_written_meanwhile(sides, operation):
    """The owner of the source changes a block again and again: that is found, and it is named."""
    owner, user = sides
    remote = owner.blocks(1, key=0, **SHAPE)
    local = user.blocks(2, key=0, **SHAPE)
    source, target = (remote, local) if operation == "pull" else (local, remote)
    stop = threading.Event()

    def write():
        word = 0
        while not stop.is_set():
            word += 1
            source.data[2, 3] = word

    arguments = (BlocksCacheKey(1), local.cache, EVERY, EVERY)
    call = user.manager.pull_blocks if operation == "pull" else user.manager.push_blocks
    writer = threading.Thread(target=write)
    writer.start()
    try:
        with failing("LLM_FAILED", f"{operation}_blocks", "block 3", peer=1) as caught:
            until = time.monotonic() + 30
            while time.monotonic() < until:
                call(*arguments)
    finally:
        stop.set()
        writer.join()
    assert {(fault.tensor_index, fault.block) for fault in caught.value.faults} == {(2, 3)}
    assert {fault.cache_id for fault in caught.value.faults} == {target.id}
    call(*arguments)
    assert np.array_equal(target.data, source.data)


def test_a_cache_that_ends_during_a_checked_transfer(sides, spoil):
    """Between the bytes and the question for their checksum: the question finds it gone."""
    owner, user = sides
    source = owner.blocks(1, key=0, **SHAPE)
    target = user.blocks(**SHAPE)
    spoil(lambda _: owner.manager.unregister_cache(source.id))
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_blocks", peer=1):
        user.manager.pull_blocks(BlocksCacheKey(1), target.cache, EVERY, EVERY)


def test_an_own_cache_that_ends_during_a_checked_transfer(sides, spoil):
    owner, user = sides
    owner.blocks(1, key=0, **SHAPE)
    target = user.blocks(**SHAPE)
    spoil(lambda _: user.manager.unregister_cache(target.id))
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_blocks", "local cache", peer=1):
        user.manager.pull_blocks(BlocksCacheKey(1), target.cache, EVERY, EVERY)


def test_more_calls_than_lanes(backend):
    """Calls that have a lane for their question wait for no other: none waits for another call."""
    owner = Side(1, backend)
    user = Side(2, backend, checksum="crc32c", lanes_per_link=2, sync_kv_timeout=20_000)
    errors = []
    try:
        link(user.instance, owner.address)
        owner.blocks(1, key=0, **SHAPE)
        targets = [user.blocks(**SHAPE) for _ in range(6)]

        def work(target):
            try:
                for _ in range(4):
                    user.manager.pull_blocks(BlocksCacheKey(1), target.cache, EVERY, EVERY)
                    user.manager.push_blocks(BlocksCacheKey(1), target.cache, [], [])
            except BaseException as error:
                errors.append(error)

        began = time.monotonic()
        threads = [threading.Thread(target=work, args=(target,)) for target in targets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert time.monotonic() - began < 20
    finally:
        finalize(owner, user)


def test_an_interrupted_transfer_leaves_no_lane_taken(backend):
    """What comes out of the middle of a transfer, held on to, does not keep a link from closing."""
    owner, user = Side(1, backend), Side(2, backend, checksum="crc32c", lanes_per_link=1)
    try:
        link(user.instance, owner.address)
        source, target = owner.blocks(1, key=0), user.blocks()
        channel = user.instance._engine.links.get(1).data.channel
        run, read_and_sum = channel.run, channel.read_and_sum

        def interrupted(transfer):
            raise KeyboardInterrupt

        arguments = (BlocksCacheKey(1), target.cache, EVERY[:8], EVERY[:8])
        channel.run = channel.read_and_sum = interrupted
        with pytest.raises(KeyboardInterrupt) as caught:
            user.manager.pull_blocks(*arguments)
        channel.run, channel.read_and_sum = run, read_and_sum
        user.manager.pull_blocks(*arguments)
        assert np.array_equal(target.data, source.data)
        user.instance.finalize()
        assert caught.value is not None
        del caught, channel, run, read_and_sum, interrupted
    finally:
        finalize(owner, user)


def test_both_sides_check(backend):
    sides = linked_sides(backend, checksum="crc32c")
    try:
        held = [side.blocks(side.id, key=0, **SHAPE) for side in sides]
        errors = []

        def move(side, own, other_id):
            try:
                for _ in range(3):
                    side.manager.pull_blocks(
                        BlocksCacheKey(other_id), own.cache, EVERY[:12], EVERY[12:]
                    )
            except BaseException as error:
                errors.append(error)

        threads = [
            threading.Thread(target=move, args=(side, own, other.id))
            for side, own, other in zip(sides, held, sides[::-1], strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert np.array_equal(held[0].data[:, 12:], held[1].data[:, :12])
    finally:
        finalize(*sides)
