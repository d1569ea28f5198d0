"""Caches as values, and create_cpu_cache (api.md 5.2)."""

import numpy as np
import pytest

from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._types import Cache, CacheDesc, DataType, KvCache, Placement
from llm_datadist._types.addresses import check_addrs

DESC = CacheDesc(2, [3, 4], DataType.DT_INT32, Placement.HOST)


def refused(text, call, *args):
    with pytest.raises(LLMException, match=text) as caught:
        call(*args)
    assert caught.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


def test_the_first_generation_name_is_the_same_class():
    assert KvCache is Cache


def test_a_cache_shows_what_it_was_made_of():
    owner = object()
    cache = Cache(7, DESC, (4096, 8192), is_blocks_cache=True, owner=owner)
    assert cache.cache_id == 7
    assert cache.cache_desc == DESC
    assert cache.tensor_addrs == [4096, 8192]
    assert cache.per_device_tensor_addrs == [[4096, 8192]]
    assert cache.is_blocks_cache is True
    assert cache.owner is owner


@pytest.mark.parametrize(
    "name", ["cache_id", "cache_desc", "tensor_addrs", "per_device_tensor_addrs", "is_blocks_cache"]
)
def test_a_cache_is_read_only(name):
    with pytest.raises(AttributeError):
        setattr(Cache(1, DESC, (1, 2)), name, None)


def test_a_cache_keeps_the_description_of_its_making():
    desc = DESC.copy()
    cache = Cache(1, desc, (4096, 8192))
    desc.update_dim(0, 9)
    cache.cache_desc.update_dim(0, 9)
    cache.tensor_addrs.append(1)
    assert cache.cache_desc.shape == [3, 4]
    assert cache.tensor_addrs == [4096, 8192]


@pytest.mark.parametrize("addrs", [[4096, 8192], (4096, 8192), [[4096, 8192]], ([4096, 8192],)])
def test_a_cpu_cache_takes_flat_addresses_or_one_list_for_the_device(addrs):
    """api.md checklist 50."""
    cache = Cache.create_cpu_cache(DESC, addrs)
    assert cache.tensor_addrs == [4096, 8192]
    assert cache.per_device_tensor_addrs == [[4096, 8192]]


def test_a_cpu_cache_has_no_id_and_no_owner():
    cache = Cache.create_cpu_cache(DESC, [4096, 8192])
    assert (cache.cache_id, cache.owner, cache.is_blocks_cache) == (-1, None, False)


@pytest.mark.parametrize("addrs", [[4096, [8192]], [[4096], 8192]])
def test_numbers_and_lists_should_be_consistent(addrs):
    refused("should be consistent", Cache.create_cpu_cache, DESC, addrs)


def test_a_cpu_cache_is_of_one_device():
    refused("2 devices", Cache.create_cpu_cache, DESC, [[4096, 8192], [4096, 8192]])


@pytest.mark.parametrize(("desc", "addrs"), [(None, [1, 2]), (DESC, None)])
def test_none_is_an_attribute_error(desc, addrs):
    """api.md checklist 5."""
    with pytest.raises(AttributeError, match="is None"):
        Cache.create_cpu_cache(desc, addrs)


@pytest.mark.parametrize(
    ("desc", "addrs"),
    [(1, [1, 2]), ("x", [1, 2]), (DESC, 1), (DESC, "12"), (DESC, [1, "2"]), (DESC, [1, 2.0])],
)
def test_a_wrong_type_is_a_type_error(desc, addrs):
    """api.md checklist 5."""
    with pytest.raises(TypeError):
        Cache.create_cpu_cache(desc, addrs)


@pytest.mark.parametrize("addr", [-1, 2**64])
def test_an_address_outside_uint64_is_a_value_error(addr):
    """api.md checklist 5."""
    with pytest.raises(ValueError, match=r"addrs\[1\]"):
        Cache.create_cpu_cache(DESC, [1, addr])


def test_there_is_one_address_per_tensor():
    """api.md checklist 34."""
    for addrs in ([1], [1, 2, 3], []):
        refused(f"{len(addrs)} addrs for 2 tensors", Cache.create_cpu_cache, DESC, addrs)
    refused(r"addrs\[1\] is 0", Cache.create_cpu_cache, DESC, [1, 0])


def test_a_tensor_must_not_wrap_the_address_space():
    assert check_addrs("x", DESC, [1, 2**64 - 49]) == (1, 2**64 - 49)
    with pytest.raises(ValueError, match=r"addrs\[1\].*wraps"):
        check_addrs("x", DESC, [1, 2**64 - 48])


@pytest.mark.parametrize(
    "desc", [CacheDesc(0, [1], DataType.DT_INT8), CacheDesc(1, [1], DataType.DT_STRING)]
)
def test_a_description_that_no_cache_can_have_is_refused(desc):
    refused("create_cpu_cache failed", Cache.create_cpu_cache, desc, [1])


def test_a_tensor_is_a_writable_view_of_the_memory():
    memory = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    cache = Cache.create_cpu_cache(DESC, [memory[0].ctypes.data, memory[1].ctypes.data])
    second = cache.tensor(1)
    assert np.array_equal(second, memory[1])
    second[2, 3] = -7
    assert memory[1, 2, 3] == -7
    assert (second.dtype, second.shape) == (np.int32, (3, 4))


@pytest.mark.parametrize("data_type", [t for t in DataType if t is not DataType.DT_STRING])
def test_a_tensor_has_the_element_size_of_its_type(data_type):
    memory = np.zeros(64, np.uint8)
    desc = CacheDesc(1, [4], data_type)
    tensor = Cache.create_cpu_cache(desc, [memory.ctypes.data]).tensor(0)
    assert tensor.nbytes == desc.size


@pytest.mark.parametrize(
    ("index", "error"), [(2, LLMException), (-1, ValueError), ("0", TypeError), (True, TypeError)]
)
def test_a_tensor_index_is_checked(index, error):
    with pytest.raises(error):
        Cache(1, DESC, (4096, 8192)).tensor(index)


def test_device_memory_has_no_view():
    refused("device memory", Cache(1, DESC, (1, 2), is_host_memory=False).tensor, 0)


def test_a_cache_prints_its_fields():
    """api.md checklist 61."""
    text = repr(Cache(1, DESC, (4096, 8192)))
    assert text == (
        f"Cache(cache_id=1, cache_desc={DESC}, tensor_addrs=[0x1000, 0x2000], "
        "is_blocks_cache=False)"
    )
    assert len(repr(Cache(1, CacheDesc(240, [1], DataType.DT_INT8), tuple(range(240))))) < 300
