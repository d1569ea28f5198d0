"""How a GPU's memory is copied (llm.GpuCopy), and its checksums."""

import numpy as np
import pytest

from llm_datadist import _native
from support.fake_cuda import COPIES
from support.gpu_caches import EVERY, ORDER, SHAPE, UNITS, WORDS, OnGpu, cache_on
from support.instances import failing, pattern

pytestmark = pytest.mark.gpu
PAIRS = dict(zip(EVERY, ORDER, strict=True))
WHERE = [("gpu", "gpu"), ("gpu", "host"), ("host", "gpu")]


def calls(stand_in):
    return {name: stand_in.calls(name) for name in COPIES if stand_in.calls(name)}


@pytest.mark.parametrize(("way", "expected"), [("auto", 0), ("kernel", 0), ("engine", 1)])
def test_a_way_to_copy(make, gpu, stand_in, way, expected):
    owner, user = make("host", device="cuda", gpu_copy=way)
    OnGpu(owner, gpu, seed=3, key=0)
    target, other = OnGpu(user, gpu), OnGpu(user, gpu)
    stand_in.fail("")  # counts from here on
    user.manager.pull_blocks(owner.blocks_key(), target.cache, EVERY, ORDER)
    user.manager.swap_blocks(target.cache, other.cache, PAIRS)
    name = ("cuLaunchKernel", "cuMemcpyBatchAsync")[expected]
    assert calls(stand_in) == {name: 2}
    assert (target.data[:, ORDER] == pattern(SHAPE, 3)).all()
    assert (other.data[:, ORDER] == target.data).all()


@pytest.mark.parametrize("where", ["gpu", "host"])
def test_swaps_with_host_memory_use_engines(make, gpu, stand_in, where):
    (side,) = make("host", 1, device="cuda", gpu_copy="kernel")
    other = "host" if where == "gpu" else "gpu"
    source, target = cache_on(where, side, gpu, seed=3), cache_on(other, side, gpu)
    stand_in.fail("")
    side.manager.swap_blocks(source.cache, target.cache, PAIRS)
    assert calls(stand_in) == {"cuMemcpyBatchAsync": 1}
    assert (target.data[:, ORDER] == pattern(SHAPE, 3)).all()


def test_copies_within_a_cache_are_made_by_a_kernel(make, gpu, stand_in):
    (side,) = make("host", 1, device="cuda")
    cache = OnGpu(side, gpu, seed=3)
    stand_in.fail("")
    side.manager.copy_blocks(cache.cache, {0: [1, 2]})
    assert set(calls(stand_in)) == {"cuLaunchKernel"}
    expected = pattern(SHAPE, 3)
    expected[:, 1] = expected[:, 2] = expected[:, 0]
    assert (cache.data == expected).all()


@pytest.mark.expects_log("refuses the kernels .*cuModuleLoadData.*llm.GpuCopy")
def test_kernels_that_the_driver_refuses_are_told_once(make, gpu, stand_in, monkeypatch):
    """An old driver or GPU; copies go on."""
    monkeypatch.setattr(
        _native, "gpu_kernels_problem", lambda _: "cuModuleLoadData failed with 222"
    )
    monkeypatch.setattr("llm_datadist._devices.cuda._warned", set())
    (side,) = make("host", 1, device="cuda")
    source, target = OnGpu(side, gpu, seed=3), OnGpu(side, gpu)
    side.manager.swap_blocks(source.cache, target.cache, PAIRS)
    assert (target.data[:, ORDER] == pattern(SHAPE, 3)).all()


@pytest.mark.parametrize(("remote", "local"), WHERE)
def test_checked_transfers(make, gpu, remote, local):
    owner, user = make("host", device="cuda", checksum="crc32c")
    source = cache_on(remote, owner, gpu, seed=3, key=0)
    target = cache_on(local, user, gpu)
    user.manager.pull_blocks(owner.blocks_key(), target.cache, EVERY, ORDER)
    assert (target.data[:, ORDER] == source.data).all()
    pushed = cache_on(local, user, gpu, seed=4)
    user.manager.push_blocks(owner.blocks_key(), pushed.cache, EVERY, ORDER)
    assert (source.data[:, ORDER] == pushed.data).all()


def test_a_checksum_is_that_of_the_processor(make, gpu):
    (side,) = make("host", 1, device="cuda")
    cache = OnGpu(side, gpu, seed=3)
    node = side.instance._engine.node
    ref = side.instance._engine.registry.find("test", cache.cache).ref
    sizes = np.array([0, 1, 15, 4097, UNITS * WORDS * 8], np.uint64)
    addresses = np.array([cache.addresses[0] + 3 * i for i in range(4)] + [cache.addresses[1]],
                         np.uint64)  # fmt: skip
    outcome, sums = node.checksum(addresses, sizes, ref, 2**62)
    assert outcome.code == _native.OK
    first, second = (each.tobytes() for each in cache.data)
    parts = [first[3 * i : 3 * i + int(size)] for i, size in enumerate(sizes[:4])] + [second]
    assert sums.tolist() == [_native.crc32c(part) for part in parts]


def test_a_checksum_without_kernels_is_the_same(make, gpu, stand_in):
    """The bytes are copied to the host, and the processor computes it."""
    (side,) = make("host", 1, device="cuda")
    cache = OnGpu(side, gpu, seed=3)
    node = side.instance._engine.node
    ref = side.instance._engine.registry.find("test", cache.cache).ref
    words = np.array([cache.addresses[1]], np.uint64), np.array([UNITS * WORDS * 8], np.uint64)
    by_kernel = node.checksum(*words, ref, 2**62)[1]
    # So that no kernel may have the range.
    stand_in.fail("cuMemGetAddressRange:*:1,cuPointerGetAttribute:*:1")
    by_processor = node.checksum(*words, ref, 2**62)[1]
    assert by_kernel.tolist() == by_processor.tolist()
    assert stand_in.calls("cuLaunchKernel") == 0


def test_a_byte_that_changed_on_the_way_is_noticed(make, gpu, stand_in, monkeypatch):
    owner, user = make("host", device="cuda", checksum="crc32c")
    source, target = OnGpu(owner, gpu, seed=3, key=0), OnGpu(user, gpu)
    (link,) = user.instance._engine.links.links()
    channel = link.data.device_channel
    move = channel.run

    def run(transfer):
        outcome = move(transfer)
        gpu.write(target.addresses[0] + 8, np.array([1], np.uint64))
        return outcome

    monkeypatch.setattr(channel, "run", run)
    with failing("LLM_FAILED", "pull_blocks", "checksum", peer=1) as caught:
        user.manager.pull_blocks(owner.blocks_key(), target.cache, [0], [0])
    monkeypatch.undo()
    assert [fault.block for fault in caught.value.faults] == [0]
    assert (source.data == pattern(SHAPE, 3)).all()


def test_a_hanging_gpu_ends_a_check_by_its_deadline(make, gpu, stand_in):
    (side,) = make("host", 1, device="cuda", sync_kv_timeout=200)
    cache = OnGpu(side, gpu, seed=3)
    node = side.instance._engine.node
    ref = side.instance._engine.registry.find("test", cache.cache).ref
    words = np.array([cache.addresses[0]], np.uint64), np.array([64], np.uint64)
    stand_in.hang(0, hangs=True)
    outcome, _ = node.checksum(*words, ref, 1)
    assert outcome.code == _native.TIMEOUT
