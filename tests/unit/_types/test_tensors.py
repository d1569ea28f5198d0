"""What is read from the tensors of array libraries, and which tensors are refused."""

import numpy as np
import pytest

from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._types.enums import DataType
from llm_datadist._types.tensors import tensor_memory


class Torch:
    """What torch's tensors have, over a numpy array."""

    def __init__(self, array, dtype=None, device="cpu"):
        self.array = array
        self.dtype = f"torch.{dtype or array.dtype}"
        self.device = type(
            "Device", (), {"type": device.partition(":")[0], "__str__": lambda _: device}
        )()
        self.shape = array.shape

    def data_ptr(self):
        return self.array.ctypes.data

    def element_size(self):
        return self.array.itemsize

    def stride(self):
        return tuple(stride // self.array.itemsize for stride in self.array.strides)

    def detach(self):
        return self.array


class Cupy:
    """What CuPy's arrays have."""

    def __init__(self, array):
        self.dtype = array.dtype
        self.__array = array

    @property
    def __cuda_array_interface__(self):
        return self.__array.__array_interface__


class OnlyDlpack:
    """An array of a library with nothing but DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def memory(tensor):
    return tensor_memory("register_tensors", "tensors[3]", tensor)


def refusal(tensor):
    with pytest.raises(LLMException) as error:
        memory(tensor)
    assert error.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
    assert "register_tensors" in str(error.value)
    assert "tensors[3]" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", [np.asarray, Torch, Cupy, OnlyDlpack])
def test_address_shape_and_type(kind):
    array = np.zeros((4, 2, 8), np.float16)
    found = memory(kind(array))
    assert (found.addr, found.shape) == (array.ctypes.data, (4, 2, 8))
    assert found.data_type is DataType.DT_FLOAT16
    assert found.on_device is (kind is Cupy)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float32", DataType.DT_FLOAT),
        ("float64", DataType.DT_DOUBLE),
        ("int8", DataType.DT_INT8),
        ("uint16", DataType.DT_UINT16),
        ("int64", DataType.DT_INT64),
        ("bool", DataType.DT_BOOL),
    ],
)
@pytest.mark.parametrize("kind", [np.asarray, Torch])
def test_types_of_elements(kind, dtype, expected):
    assert memory(kind(np.zeros(4, dtype))).data_type is expected


def test_bfloat16_of_torch():
    found = memory(Torch(np.zeros((4, 8), np.uint16), "bfloat16"))
    assert found.data_type is DataType.DT_BF16


def test_a_gpus_tensor_is_on_the_device():
    assert memory(Torch(np.zeros(4, np.int8), device="cuda:1")).on_device


@pytest.mark.parametrize("kind", [np.asarray, Torch])
def test_a_type_that_caches_do_not_have(kind):
    assert "complex64, which caches do not have; give a view of the same bytes" in refusal(
        kind(np.zeros(4, np.complex64))
    )


def test_numbers_in_another_byte_order_have_no_type():
    assert ">f4, which caches do not have" in refusal(np.zeros(4, ">f4"))


def test_another_device():
    assert "tensors[3] is on the device xpu:0" in refusal(Torch(np.zeros(4), device="xpu:0"))


@pytest.mark.parametrize("kind", [np.asarray, Torch, Cupy])
@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda base: base[:, ::2], id="every second row"),
        pytest.param(lambda base: base[:, :, :4], id="half of each row"),
        pytest.param(lambda base: base[::-1], id="backwards"),
        pytest.param(lambda base: np.broadcast_to(base[:1], base.shape), id="one block, repeated"),
    ],
)
def test_a_view_with_gaps_is_refused(kind, view):
    """A transfer would overwrite what lies between its elements."""
    array = view(np.zeros((4, 8, 16), np.float32))
    array.flags.writeable = True
    assert "not contiguous" in (text := refusal(kind(array)))
    assert "give a contiguous tensor" in text


@pytest.mark.parametrize("kind", [np.asarray, Torch])
def test_a_permuted_tensor_is_to_be_given_in_the_order_of_its_memory(kind):
    base = np.zeros((4, 8, 2, 16), np.float32)
    assert "tensor.permute([0, 2, 1, 3])" in refusal(kind(base.transpose(0, 2, 1, 3)))


@pytest.mark.parametrize("kind", [np.asarray, Torch])
def test_parts_that_are_contiguous_themselves(kind):
    base = np.zeros((2, 4, 8), np.float32)
    assert memory(kind(base[1])).addr == base.ctypes.data + 4 * 8 * 4
    assert memory(kind(base[:, :1, :][:1])).shape == (1, 1, 8)


def test_read_only_memory_is_refused():
    array = np.zeros(4)
    array.flags.writeable = False
    assert "tensors[3] is read-only" in refusal(array)


def test_an_array_that_numpy_cannot_read():
    class Elsewhere(OnlyDlpack):
        def __dlpack__(self, **_):
            raise BufferError("on another device")

    assert "(on another device)" in refusal(Elsewhere(np.zeros(4)))


@pytest.mark.parametrize("other", [None, 7, [1.0], "tensor", b"bytes"])
def test_what_is_no_tensor(other):
    with pytest.raises(TypeError, match=r"tensors\[3\] must be a tensor of torch"):
        memory(other)


def test_torch_itself():
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(4, 8, 2, dtype=torch.bfloat16)
    found = memory(tensor)
    assert found.addr == tensor.data_ptr()
    assert (found.shape, found.data_type) == ((4, 8, 2), DataType.DT_BF16)
    assert "tensor.permute([0, 2, 1])" in refusal(tensor.transpose(1, 2))
    assert "float8_e4m3fn, which caches do not have" in refusal(tensor.to(torch.float8_e4m3fn))
    tensor.data = torch.ones(1, dtype=torch.bfloat16)
    assert not found.owner.any()
