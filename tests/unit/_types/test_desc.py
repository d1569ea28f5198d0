"""Cache descriptions (api.md 5.1, checklist 32)."""

import copy
import pickle

import numpy as np
import pytest

from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._types import CacheDesc, DataType, Placement

INT8, FLOAT16 = DataType.DT_INT8, DataType.DT_FLOAT16


class Size(tuple):
    """Like torch.Size, a sub-class of tuple."""

    __slots__ = ()


def refused(text, call, *args):
    with pytest.raises(LLMException, match=text) as caught:
        call(*args)
    assert caught.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


def test_properties_give_what_was_set():
    desc = CacheDesc(3, [2, 4], FLOAT16, Placement.HOST, 1, 0, "BNSD")
    assert desc.num_tensors == 3
    assert desc.shape == [2, 4]
    assert desc.data_type is FLOAT16
    assert desc.placement is Placement.HOST
    assert (desc.batch_dim_index, desc.batch_dim, desc.seq_len_dim_index) == (1, 1, 0)
    assert desc.kv_tensor_format == "BNSD"


def test_what_is_left_out_has_the_documented_default():
    desc = CacheDesc(1, [2], INT8)
    assert desc.placement is Placement.DEVICE
    assert (desc.batch_dim_index, desc.seq_len_dim_index) == (0, -1)
    assert desc.kv_tensor_format is None


@pytest.mark.parametrize("shape", [[2, 3], (2, 3), Size((2, 3)), [np.int64(2), np.int32(3)]])
def test_a_shape_is_a_list_a_tuple_or_a_size(shape):
    desc = CacheDesc(1, shape, INT8)
    assert desc.shape == shape
    assert shape == desc.shape
    assert desc.shape == [2, 3] == desc.shape
    assert {type(n) for n in desc.shape} == {int}


@pytest.mark.parametrize("other", [[2], (2,), (2, 4), [3, 2], Size(()), 2, None, {2, 3}, "23"])
def test_a_shape_differs_from_anything_else(other):
    shape = CacheDesc(1, (2, 3), INT8).shape
    assert shape != other
    assert not shape == other  # noqa: SIM201 - the other operator
    assert other != shape


def test_a_shape_is_a_list_in_every_other_way():
    shape = CacheDesc(1, (2, 3), INT8).shape
    assert isinstance(shape, list)
    assert repr(shape) == "[2, 3]"
    assert copy.deepcopy(shape) == pickle.loads(pickle.dumps(shape)) == (2, 3)
    assert np.zeros(shape).shape == shape
    with pytest.raises(TypeError, match="unhashable"):
        hash(shape)


def test_sizes_follow_the_shape():
    desc = CacheDesc(80, [4, 8, 16], FLOAT16)
    assert desc.size == desc.tensor_bytes == 4 * 8 * 16 * 2
    assert desc.slot_bytes == desc.block_bytes == 8 * 16 * 2
    assert (desc.batch_size, desc.num_blocks) == (4, 4)


def test_a_batch_dimension_behind_ones_is_outermost():
    desc = CacheDesc(1, [1, 4, 8], INT8, batch_dim_index=1)
    assert (desc.batch_size, desc.slot_bytes) == (4, 8)


def test_an_inner_batch_dimension_is_refused_when_a_slot_is_addressed():
    desc = CacheDesc(1, [4, 8], INT8, batch_dim_index=1)
    assert desc.batch_size == 8
    assert desc.block_bytes == 8
    refused("not the outermost", lambda: desc.slot_bytes)


@pytest.mark.parametrize("index", [-1, 2, 2**31 - 1, -(2**31)])
def test_a_batch_dimension_beyond_the_shape_is_refused_at_use(index):
    desc = CacheDesc(1, [4, 8], INT8, batch_dim_index=index)
    assert desc.size == 32
    refused("batch_dim_index", lambda: desc.batch_size)
    refused("batch_dim_index", lambda: desc.slot_bytes)


@pytest.mark.parametrize(
    "change",
    [
        {"num_tensors": 1.0},
        {"num_tensors": True},
        {"num_tensors": None},
        {"shape": None},
        {"shape": 4},
        {"shape": "12"},
        {"shape": [1, 2.0]},
        {"shape": [True]},
        {"data_type": 0},
        {"data_type": "DT_INT8"},
        {"placement": 1},
        {"placement": None},
        {"batch_dim_index": "0"},
        {"seq_len_dim_index": 0.5},
        {"kv_tensor_format": 1},
    ],
)
def test_a_wrong_type_is_a_type_error(change):
    """api.md checklist 5."""
    arguments = {"num_tensors": 1, "shape": [2], "data_type": INT8} | change
    with pytest.raises(TypeError, match=next(iter(change))):
        CacheDesc(**arguments)


@pytest.mark.parametrize(
    "change",
    [
        {"num_tensors": -1},
        {"num_tensors": 2**32},
        {"shape": [2, -1]},
        {"shape": [2**63]},
        {"batch_dim_index": 2**31},
        {"batch_dim_index": -(2**31) - 1},
        {"seq_len_dim_index": 2**31},
    ],
)
def test_an_integer_outside_its_width_is_a_value_error(change):
    """api.md checklist 5."""
    arguments = {"num_tensors": 1, "shape": [2], "data_type": INT8} | change
    with pytest.raises(ValueError, match=next(iter(change))):
        CacheDesc(**arguments)


def test_an_unknown_keyword_is_a_type_error():
    with pytest.raises(TypeError):
        CacheDesc(1, [2], INT8, color="red")


def test_a_tensor_larger_than_int64_is_refused():
    assert CacheDesc(1, [2**31, 2**31], INT8).size == 2**62
    for shape, data_type in [([2**32, 2**31], INT8), ([2**31, 2**31], FLOAT16)]:
        with pytest.raises(ValueError, match=r"2\*\*63"):
            CacheDesc(1, shape, data_type)


@pytest.mark.parametrize(("shape", "text"), [([], "empty"), ([2, 0], "dimension of 0")])
def test_a_shape_without_elements_is_refused(shape, text):
    refused(text, CacheDesc, 1, shape, INT8)


def test_no_tensors_are_refused_at_use_only():
    desc = CacheDesc(0, [2], INT8)
    assert desc.num_tensors == 0
    refused("register_cache failed.*num_tensors is 0", desc.check_usable, "register_cache")


def test_strings_are_refused_at_use_only():
    desc = CacheDesc(1, [2], DataType.DT_STRING)
    refused("register_cache failed.*DT_STRING", desc.check_usable, "register_cache")
    refused("DT_STRING", lambda: desc.size)
    assert "DT_STRING" in repr(desc)


def test_a_usable_description_passes():
    CacheDesc(1, [2], INT8).check_usable("register_cache")


def test_update_dim_changes_shape_and_sizes():
    desc = CacheDesc(1, [4, 8], FLOAT16)
    desc.update_dim(0, 2)
    desc.update_dim(1, np.int64(3))
    assert (desc.shape, desc.size, desc.slot_bytes) == ([2, 3], 12, 6)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("0", 1), TypeError),
        ((0, 1.5), TypeError),
        ((0, None), TypeError),
        ((0, -1), ValueError),
        ((2**31, 1), ValueError),
        ((0, 2**62), ValueError),
        ((2, 1), LLMException),
        ((-1, 1), LLMException),
        ((0, 0), LLMException),
    ],
)
def test_update_dim_that_fails_changes_nothing(arguments, error):
    desc = CacheDesc(1, [4, 8], FLOAT16)
    with pytest.raises(error):
        desc.update_dim(*arguments)
    assert (desc.shape, desc.size) == ([4, 8], 64)


def test_the_shape_that_is_given_out_is_a_copy():
    desc = CacheDesc(1, [4, 8], INT8)
    desc.shape[0] = 100
    assert desc.shape == [4, 8]


def test_descriptions_are_equal_by_value_and_copies_independent():
    desc = CacheDesc(1, [4, 8], INT8)
    copy = desc.copy()
    assert copy == desc == CacheDesc(1, (4, 8), INT8)
    copy.update_dim(0, 5)
    assert copy != desc
    assert desc != CacheDesc(1, [4, 8], FLOAT16)
    assert desc != 1
    with pytest.raises(TypeError, match="unhashable"):
        hash(desc)


@pytest.mark.parametrize("name", ["num_tensors", "shape", "data_type", "size", "batch_size"])
def test_properties_are_read_only(name):
    with pytest.raises(AttributeError):
        setattr(CacheDesc(1, [2], INT8), name, 1)


def test_a_description_prints_its_fields():
    """api.md checklist 61."""
    assert repr(CacheDesc(1, [2, 3], INT8, kv_tensor_format="x")) == (
        "CacheDesc(num_tensors=1, shape=[2, 3], data_type=DataType.DT_INT8, "
        "placement=Placement.DEVICE, batch_dim_index=0, seq_len_dim_index=-1, kv_tensor_format='x')"
    )
