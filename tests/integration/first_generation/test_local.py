"""Copies within an instance, and tensors of caches (api.md 8)."""

import numpy as np
import pytest

from llm_datadist import CacheDesc, DataType, KvCache, Placement, Tensor, TensorDesc
from support.first_generation import desc_of, filled, values
from support.instances import failing


@pytest.fixture(params=[0, 1], ids=["prompt", "decoder"])
def manager(managers, request):
    return managers[request.param]


def test_copy_cache(manager):
    src, dst = filled(manager.allocate_cache(desc_of()), 10), manager.allocate_cache(desc_of())
    filled(dst, 50)
    manager.copy_cache(dst, src, 3, 1)
    assert values(dst) == [50, 51, 52, 11]
    manager.copy_cache(dst, src, dst_batch_index=0, src_batch_index=2, offset=8, size=16, req_id=4)
    assert dst.tensor(1)[0].tolist()[:4] == [50, 12, 12, 50]
    with failing("LLM_PARAM_INVALID", "copy_cache", "dst_batch_index"):
        manager.copy_cache(dst, src, 4)


def test_copy_blocks(manager):
    cache = filled(manager.allocate_blocks_cache(desc_of(8)), 0)
    manager.copy_blocks(cache, {1: [5, 6], 2: [7]})
    assert values(cache) == [0, 1, 2, 3, 4, 1, 1, 2]
    with failing("LLM_PARAM_INVALID", "copy_blocks", "8"):
        manager.copy_blocks(cache, {8: [0]})


def test_swap_blocks_in_both_directions(manager):
    """With a cache of the program's memory; the counts of blocks may differ."""
    cache = filled(manager.allocate_blocks_cache(desc_of(8)), 30)
    memory = np.zeros((2, 4, 64), np.uint64)
    desc = desc_of(4, placement=Placement.HOST)
    host = KvCache.create_cpu_cache(desc, [tensor.ctypes.data for tensor in memory])
    manager.swap_blocks(cache, host, {7: 0, 2: 3})
    assert memory[:, :, 0].tolist() == [[37, 0, 0, 32]] * 2
    manager.swap_blocks(src=host, dst=cache, src_to_dst={0: 1})
    assert values(cache) == [30, 37, 32, 33, 34, 35, 36, 37]
    manager.deallocate_cache(host)  # a no-op
    other = manager.allocate_blocks_cache(CacheDesc(2, [4, 64], DataType.DT_INT64))
    with pytest.raises(TypeError, match="DT_INT64"):
        manager.swap_blocks(cache, other, {0: 0})
    with pytest.raises(ValueError, match="equal tensors and block shape"):
        manager.swap_blocks(cache, manager.allocate_blocks_cache(desc_of(8, words=32)), {0: 0})


def test_tensors_of_a_cache_are_views(manager):
    cache = manager.allocate_cache(desc_of())
    for index in range(2):
        (tensor,) = manager.get_cache_tensors(cache, index)
        assert isinstance(tensor, Tensor)
        assert tensor.tensor_desc == TensorDesc(DataType.DT_UINT64, [4, 64])
        tensor.numpy()[:] = index + 1
        copied = tensor.numpy(copy=True)
        copied[:] = 9
        assert (cache.tensor(index) == index + 1).all()
    (first,) = manager.get_cache_tensors(cache)
    assert first.numpy()[0, 0] == 1


def test_tensors_of_bf16_are_float32_in_numpy(manager):
    cache = manager.allocate_cache(CacheDesc(1, [1, 2], DataType.DT_BF16))
    cache.tensor(0)[:] = 0x3F80
    (tensor,) = manager.get_cache_tensors(cache, 0)
    assert tensor.tensor_desc.dtype is DataType.DT_BF16
    assert tensor.numpy().tolist() == [[1.0, 1.0]]
    assert tensor.numpy().dtype == np.float32


@pytest.mark.parametrize("index", [-1, 2, -(2**63)])
def test_no_such_tensor(manager, index):
    with failing("LLM_PARAM_INVALID", "get_cache_tensors", index, "2 tensors"):
        manager.get_cache_tensors(manager.allocate_cache(desc_of()), index)
