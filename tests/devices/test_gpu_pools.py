"""Pools of a GPU's memory, and pinned pools beside them."""

import numpy as np
import pytest

from llm_datadist import CacheKey, LLMException, MemInfo, Memtype, Placement
from support.gpu_caches import EVERY, ORDER, POOL, SHAPE, TENSORS, UNITS, WORDS, OnGpu, Pooled, desc
from support.instances import Side, failing, finalize, link, pattern
from support.owner_process import KEY, TIMEOUT_MS, device_facts

pytestmark = pytest.mark.gpu
MIB = 1 << 20
TENSOR_BYTES = UNITS * WORDS * 8


def remap(side, *ranges):
    infos = [MemInfo(Memtype.MEM_TYPE_DEVICE, *each) for each in ranges]
    side.manager.remap_registered_memory(infos)


@pytest.fixture
def pooled(gpu, owner):
    """An instance with pools, linked to the process."""
    side = Side(
        2,
        "host",
        device="cuda",
        sync_kv_timeout=TIMEOUT_MS,
        mem_pool_cfg=POOL,
        host_mem_pool_cfg=POOL,
    )
    link(side.instance, owner.address)
    yield side
    finalize(side)


def test_caches_of_a_pool_are_of_the_gpu(pooled, gpu):
    cache = pooled.manager.allocate_cache(desc(units=4))
    begin = cache.tensor_addrs[0]
    (use,) = (each for each in pooled.instance.stats().pools if each.name == "device")
    assert (use.size_bytes, use.used_bytes, use.num_allocations) == (
        48 * MIB,
        TENSORS * 4 * WORDS * 8,
        TENSORS,
    )
    gpu.write(begin, np.arange(8, dtype=np.uint64))
    assert (gpu.read(begin, (8,)) == np.arange(8)).all()
    with failing("LLM_PARAM_INVALID", "tensor", "device_tensor"):
        cache.tensor(0)
    found = cache.device_tensor(1).__cuda_array_interface__
    assert (found["data"], found["shape"]) == ((cache.tensor_addrs[1], False), (4, WORDS))
    pooled.manager.deallocate_cache(cache)
    (use,) = (each for each in pooled.instance.stats().pools if each.name == "device")
    assert (use.used_bytes, use.largest_free_bytes) == (0, 48 * MIB)


def test_pull_into_and_push_from_a_pool(owner, pooled, gpu):
    owner.ask("register", "gpu", 3)
    cache = Pooled(pooled, gpu)
    pooled.manager.pull_blocks(KEY, cache.cache, EVERY, ORDER)
    assert (cache.data[:, ORDER] == pattern(SHAPE, 3)).all()
    pooled.manager.push_blocks(KEY, cache.cache, EVERY, EVERY)
    assert owner.ask("holds_at", 3, ORDER)


def test_a_peer_pulls_from_and_pushes_to_a_pool(owner, user, gpu):
    owner.ask("allocate", 3)
    target = OnGpu(user, gpu)
    user.manager.pull_blocks(KEY, target.cache, EVERY, ORDER)
    assert (target.data[:, ORDER] == pattern(SHAPE, 3)).all()
    assert device_facts(user)["mapped_allocations"] == 1
    target.data = pattern(SHAPE, 4)
    user.manager.push_blocks(KEY, target.cache, ORDER, EVERY)
    assert owner.ask("holds", 4, ORDER)


def test_what_was_freed_and_allocated_again_is_never_stale(owner, user, gpu):
    owner.ask("allocate", 3)
    target = OnGpu(user, gpu)
    user.manager.pull_blocks(KEY, target.cache, EVERY, EVERY)
    owner.ask("deallocate")
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_blocks", peer=1):
        user.manager.pull_blocks(KEY, target.cache, EVERY, EVERY)
    assert (target.data == pattern(SHAPE, 3)).all()
    owner.ask("allocate", 5)
    user.manager.pull_blocks(KEY, target.cache, EVERY, EVERY)
    assert (target.data == pattern(SHAPE, 5)).all()


def test_local_copies(pooled, gpu):
    """copy_blocks in the pool, and swap_blocks with the pinned host pool, both ways."""
    cache = Pooled(pooled, gpu, seed=3)
    pooled.manager.copy_blocks(cache.cache, {0: [5, 7]})
    assert (cache.data[:, [5, 7]] == pattern(SHAPE, 3)[:, [0, 0]]).all()
    host = pooled.manager.allocate_blocks_cache(desc(Placement.HOST))
    pooled.manager.swap_blocks(cache.cache, host, {1: 9})
    words = np.stack([host.tensor(each) for each in range(TENSORS)])
    assert (words[:, 9] == pattern(SHAPE, 3)[:, 1]).all()
    pooled.manager.swap_blocks(host, cache.cache, {9: 20})
    assert (cache.data[:, 20] == pattern(SHAPE, 3)[:, 1]).all()


def test_copy_cache_and_keys(pooled, gpu):
    key = CacheKey(2, 7)
    source = pooled.manager.allocate_cache(desc(units=2), [key])
    target = pooled.manager.allocate_cache(desc(units=2))
    gpu.write(source.tensor_addrs[0], np.arange(2 * WORDS, dtype=np.uint64))
    pooled.manager.copy_cache(target, source, 1, 0)
    assert (gpu.read(target.tensor_addrs[0] + WORDS * 8, (WORDS,)) == np.arange(WORDS)).all()
    pooled.manager.remove_cache_key(key)
    pooled.manager.deallocate_cache(source)
    with failing("LLM_KV_CACHE_NOT_EXIST", "copy_cache"):
        pooled.manager.copy_cache(target, source)


def test_a_full_pool_says_its_numbers(pooled):
    many = desc(units=UNITS * 6)  # 24 MiB each of two tensors: all there is
    cache = pooled.manager.allocate_blocks_cache(many)
    with failing(
        "LLM_OUT_OF_MEMORY", "allocate_blocks_cache", f"{2 * TENSOR_BYTES} bytes", "0 free"
    ):
        pooled.manager.allocate_blocks_cache(desc())
    pooled.manager.deallocate_blocks_cache(cache)
    pooled.manager.allocate_blocks_cache(desc())


def test_host_pools_are_pinned_until_the_end(gpu, stand_in):
    before = stand_in.num_registered(), stand_in.num_virtual()
    side = Side(5, "host", device="cuda", mem_pool_cfg=POOL, host_mem_pool_cfg=POOL)
    side.manager.allocate_blocks_cache(desc())
    assert stand_in.num_registered() == before[0] + 1
    assert stand_in.num_virtual() > before[1]
    finalize(side)
    assert (stand_in.num_registered(), stand_in.num_virtual()) == before


# ---- remap


def test_remap_gives_new_memory_and_keeps_the_rest(owner, user, gpu):
    """Another cache of the same allocation keeps its bytes; links go on."""
    owner.ask("allocate", 3)
    target = OnGpu(user, gpu)
    user.manager.pull_blocks(KEY, target.cache, EVERY, EVERY)
    assert owner.ask("remap_another", 3) == [True, True]
    assert device_facts(user)["mapped_allocations"] == 0
    user.manager.pull_blocks(KEY, target.cache, EVERY, ORDER)
    assert (target.data[:, ORDER] == pattern(SHAPE, 3)).all()


def test_remap_without_memory_changes_nothing(pooled, gpu, stand_in):
    cache = Pooled(pooled, gpu, seed=3)
    stand_in.limit_memory(MIB)
    with failing("LLM_OUT_OF_MEMORY", "remap_registered_memory", f"free of {MIB}"):
        remap(pooled, (cache.cache.tensor_addrs[0], 4096))
    stand_in.limit_memory(0)
    assert (cache.data == pattern(SHAPE, 3)).all()
    pooled.manager.copy_blocks(cache.cache, {0: [5]})  # it is usable


@pytest.mark.parametrize("call", ["cuMemUnmap:2:1", "cuMemMap:2:1", "cuMemSetAccess:3:1"])
def test_a_remap_that_the_driver_refuses_changes_nothing(pooled, gpu, stand_in, call):
    cache = Pooled(pooled, gpu, seed=3)
    before = stand_in.num_virtual()
    stand_in.fail(call)
    with failing("LLM_FAILED", "remap_registered_memory"):
        remap(pooled, (cache.cache.tensor_addrs[0], 4096))
    stand_in.fail("")
    assert stand_in.num_virtual() == before
    assert (cache.data == pattern(SHAPE, 3)).all()


# ---- pools that cannot be had


@pytest.mark.parametrize(
    ("options", "status", "parts"),
    [
        ({"device_id": 7}, "LLM_FEATURE_NOT_ENABLED", ["no GPU 7", "2 GPUs, 0 to 1"]),
        ({}, "LLM_OUT_OF_MEMORY", [f"{48 * MIB} bytes asked of GPU 0", f"bytes free of {MIB}"]),
    ],
)
def test_a_pool_that_cannot_be_had(driver, stand_in, options, status, parts):
    before = stand_in.num_virtual()
    stand_in.limit_memory(MIB)
    with pytest.raises(LLMException) as raised:
        Side(6, "host", device="cuda", mem_pool_cfg=POOL, **options)
    assert raised.value.status_code.name == status
    assert all(part in str(raised.value) for part in parts), raised.value
    assert stand_in.num_virtual() == before


def test_a_gpu_without_virtual_memory(driver, stand_in):
    stand_in.deny_virtual(denied=True)
    with pytest.raises(LLMException, match="has no virtual memory") as raised:
        Side(6, "host", device="cuda", mem_pool_cfg=POOL)
    assert raised.value.status_code.name == "LLM_FEATURE_NOT_ENABLED"


def test_host_memory_that_cannot_be_pinned(driver, stand_in):
    stand_in.fail("cuMemHostRegister:1:2")
    with pytest.raises(LLMException, match=r"host_mem_pool_cfg.*cannot be pinned") as raised:
        Side(6, "host", device="cuda", host_mem_pool_cfg=POOL)
    assert raised.value.status_code.name == "LLM_OUT_OF_MEMORY"
