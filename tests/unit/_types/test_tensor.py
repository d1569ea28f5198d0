"""Tensor and TensorDesc (api.md 8, checklist 62)."""

import numpy as np
import pytest

from llm_datadist import DataType, LLMException, LLMStatusCode, Tensor, TensorDesc
from llm_datadist._types.cache import NUMPY_TYPES

NUMBERS = [data_type for data_type in NUMPY_TYPES if data_type is not DataType.DT_BF16]


@pytest.mark.parametrize("data_type", NUMBERS)
def test_an_array_has_the_type_of_its_elements(data_type):
    array = np.ones((2, 3), NUMPY_TYPES[data_type])
    tensor = Tensor(array)
    assert tensor.tensor_desc == TensorDesc(data_type, [2, 3])
    assert tensor.numpy() is array
    assert Tensor(array, TensorDesc(data_type, [3, 2])).numpy().shape == (3, 2)


def test_without_a_copy_the_memory_is_shared():
    array = np.zeros(4, np.float32)
    tensor = Tensor(array, TensorDesc(DataType.DT_FLOAT, [2, 2]))
    tensor.numpy()[1, 0] = 5
    copied = tensor.numpy(copy=True)
    copied[:] = 9
    assert array.tolist() == [0, 0, 5, 0]


def test_what_numpy_takes_is_data():
    assert Tensor([1, 2]).tensor_desc == TensorDesc(DataType.DT_INT64, [2])
    assert Tensor(1.5).tensor_desc == TensorDesc(DataType.DT_DOUBLE, [])
    tensor = Tensor([[1, 2], [3, 4]], tensor_desc=TensorDesc(DataType.DT_FLOAT16, (4,)))
    assert tensor.numpy().dtype == np.float16
    assert tensor.numpy().tolist() == [1, 2, 3, 4]


def test_bf16_is_float32_in_numpy():
    bits = np.array([[0x3F80, 0xC000], [0x7F80, 0x0001]], np.uint16)
    tensor = Tensor(bits, TensorDesc(DataType.DT_BF16, [2, 2]))
    shown = tensor.numpy()
    assert shown.dtype == np.float32
    assert shown.tolist() == [[1.0, -2.0], [np.inf, 2.0**-133]]
    assert tensor.tensor_desc.dtype is DataType.DT_BF16


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (1.0, 1.0),
        (1 + 2**-8, 1.0),  # half way: to the even one
        (1 + 3 * 2**-8, 1 + 2**-6),
        (1 + 2**-8 + 2**-20, 1 + 2**-7),
        (-3.4e38, -np.inf),
        (3.4028235e38, np.inf),
        (0.0, 0.0),
    ],
)
def test_numbers_are_rounded_to_bf16(number, expected):
    tensor = Tensor(np.array([number]), TensorDesc(DataType.DT_BF16, [1]))
    assert tensor.numpy()[0] == np.float32(expected)


def test_what_is_not_a_number_stays_so_in_bf16():
    quiet = np.array([np.nan, np.uint32(0x7F800001).view(np.float32)], np.float32)
    tensor = Tensor(quiet, TensorDesc(DataType.DT_BF16, [2]))
    assert np.isnan(tensor.numpy()).all()
    assert Tensor(2.0, TensorDesc(DataType.DT_BF16, [])).numpy().shape == ()


@pytest.mark.parametrize(
    ("data", "desc"),
    [
        ([1, 2, 3], TensorDesc(DataType.DT_FLOAT, [2])),
        ([], TensorDesc(DataType.DT_FLOAT, [1])),
        ([1], TensorDesc(DataType.DT_FLOAT, [2**62, 4])),
        ([1], TensorDesc(DataType.DT_STRING, [1])),
    ],
)
def test_data_that_does_not_fit(data, desc):
    with pytest.raises(LLMException) as caught:
        Tensor(data, desc)
    assert caught.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


def test_wrong_types():
    for data in (["a"], [None], np.zeros(1, np.complex64), "text"):
        with pytest.raises(TypeError, match="data"):
            Tensor(data)
    for desc in (1, DataType.DT_FLOAT, [2]):
        with pytest.raises(TypeError, match="tensor_desc"):
            Tensor([1], desc)
    with pytest.raises(TypeError, match="copy"):
        Tensor([1]).numpy(1)
    with pytest.raises(TypeError, match="dtype"):
        TensorDesc(0, [1])
    for shape in (1, "12", [1.0], [True]):
        with pytest.raises(TypeError, match="shape"):
            TensorDesc(DataType.DT_FLOAT, shape)
    with pytest.raises(ValueError, match="shape"):
        TensorDesc(DataType.DT_FLOAT, [-1])


def test_descriptions_are_values():
    desc = TensorDesc(DataType.DT_FLOAT, [2, 3])
    assert desc == TensorDesc(DataType.DT_FLOAT, (2, 3))
    assert desc != TensorDesc(DataType.DT_FLOAT16, [2, 3])
    assert desc != "desc"
    assert len({desc, TensorDesc(DataType.DT_FLOAT, (2, 3))}) == 1
    desc.shape.append(4)
    assert desc.shape == [2, 3]
