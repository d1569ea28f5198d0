"""Find the memory of a tensor of any array library.

No array library is imported: torch's tensors are known by `data_ptr`, numpy's arrays by
`__array_interface__`, those of CuPy and Numba by `__cuda_array_interface__`, all others by
`__dlpack__`.

Source: an extension; docs/howto/tensors.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np

from llm_datadist._errors import invalid
from llm_datadist._types.block_list import DLPACK_ERRORS
from llm_datadist._types.enums import DataType

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["TensorMemory", "tensor_memory"]

_DATA_TYPES: Final = {
    "float32": DataType.DT_FLOAT,
    "float16": DataType.DT_FLOAT16,
    "bfloat16": DataType.DT_BF16,
    "float64": DataType.DT_DOUBLE,
    "int8": DataType.DT_INT8,
    "int16": DataType.DT_INT16,
    "int32": DataType.DT_INT32,
    "int64": DataType.DT_INT64,
    "uint8": DataType.DT_UINT8,
    "uint16": DataType.DT_UINT16,
    "uint32": DataType.DT_UINT32,
    "uint64": DataType.DT_UINT64,
    "bool": DataType.DT_BOOL,
}


@final
@dataclass(frozen=True, slots=True)
class TensorMemory:
    """The memory of a contiguous tensor.

    Attributes:
        addr: Address of its first element.
        shape: Its dimensions, outermost first.
        data_type: Its element type.
        on_device: Whether it is memory of an accelerator.
        owner: Object that keeps the memory alive.
    """

    addr: int
    shape: tuple[int, ...]
    data_type: DataType
    on_device: bool
    owner: object


def tensor_memory(operation: str, name: str, tensor: Any) -> TensorMemory:  # noqa: ANN401 - of any library
    """Return where the memory of a tensor is.

    Args:
        operation: API call, for texts.
        name: What the tensor is called in texts.
        tensor: A tensor of torch, an array of numpy, CuPy or Numba, or any with `__dlpack__`.

    Raises:
        TypeError: It is none of these.
        LLMException: LLM_PARAM_INVALID: it is not contiguous, read-only, of a type that caches do
            not have, or in memory of an unknown device.
    """
    kind = type(tensor)
    if callable(getattr(tensor, "data_ptr", None)):
        return _of_torch(operation, name, tensor)
    on_device = hasattr(kind, "__cuda_array_interface__")
    if not on_device and not hasattr(kind, "__array_interface__"):
        if not hasattr(kind, "__dlpack__"):
            raise TypeError(
                f"{name} must be a tensor of torch, an array of numpy, or one with __dlpack__, "
                f"got {kind.__name__}"
            )
        tensor = _from_dlpack(operation, name, tensor)
    found = tensor.__cuda_array_interface__ if on_device else tensor.__array_interface__
    dtype = np.dtype(getattr(tensor, "dtype", found["typestr"]))
    shape, (addr, read_only) = tuple(found["shape"]), found["data"]
    data_type = _data_type(operation, name, dtype.name if dtype.isnative else dtype.str)
    if read_only:
        raise invalid(
            operation,
            f"{name} is read-only, and a peer may push into a registered cache",
            "give a writable array, or a copy",
        )
    if found.get("strides") is not None:
        _check_contiguous(operation, name, shape, found["strides"], dtype.itemsize)
    return TensorMemory(addr, shape, data_type, on_device, tensor)


def _of_torch(operation: str, name: str, tensor: Any) -> TensorMemory:  # noqa: ANN401 - no import of torch
    device = getattr(tensor.device, "type", str(tensor.device))
    if device not in {"cpu", "cuda"}:
        raise invalid(
            operation,
            f"{name} is on the device {tensor.device}",
            "give a tensor in the memory of the host or of an NVIDIA GPU",
        )
    shape, item_bytes = tuple(tensor.shape), tensor.element_size()
    data_type = _data_type(operation, name, str(tensor.dtype).rpartition(".")[2])
    strides = [stride * item_bytes for stride in tensor.stride()]
    _check_contiguous(operation, name, shape, strides, item_bytes)
    # A tensor of its own: the caller's may be given other memory (`tensor.data = ...`).
    return TensorMemory(tensor.data_ptr(), shape, data_type, device == "cuda", tensor.detach())


def _from_dlpack(operation: str, name: str, tensor: Any) -> np.ndarray[Any, Any]:  # noqa: ANN401 - of any library
    try:
        return np.from_dlpack(tensor)
    except DLPACK_ERRORS as error:
        raise invalid(
            operation,
            f"{name} cannot be read by way of DLPack ({error})",
            "give a tensor in host memory, of a type that numpy has",
        ) from error


def _data_type(operation: str, name: str, dtype: str) -> DataType:
    found = _DATA_TYPES.get(dtype)
    if found is None:
        raise invalid(
            operation,
            f"{name} is of type {dtype}, which caches do not have",
            "give a view of the same bytes, such as tensor.view(uint8)",
        )
    return found


def _check_contiguous(
    operation: str, name: str, shape: Sequence[int], strides: Sequence[int], item_bytes: int
) -> None:
    """Refuse memory with gaps: what lies in them would be overwritten, or sent to peers."""
    if _is_contiguous(shape, strides, item_bytes):
        return
    by_stride = sorted(range(len(shape)), key=lambda axis: (-strides[axis], -shape[axis], axis))
    sizes, steps = ([values[axis] for axis in by_stride] for values in (shape, strides))
    raise invalid(
        operation,
        f"{name} of shape {tuple(shape)} is not contiguous, its strides are {tuple(strides)} "
        "bytes: a transfer would move the memory between its elements as well",
        f"give it in the order of its memory, tensor.permute({by_stride})"
        if _is_contiguous(sizes, steps, item_bytes)
        else "give a contiguous tensor, or the one that this is a view of",
    )


def _is_contiguous(shape: Sequence[int], strides: Sequence[int], item_bytes: int) -> bool:
    if math.prod(shape) == 0:
        return True
    expected = item_bytes
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
