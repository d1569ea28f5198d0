"""Tensors of the first generation: numpy arrays with an element type of the API.

Source: api.md 8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import numpy as np

from llm_datadist._errors import invalid
from llm_datadist._types.cache import NUMPY_TYPES
from llm_datadist._types.checks import (
    INT64_MAX,
    check_bool,
    check_instance,
    check_list_of_ints,
    wrong_type,
)
from llm_datadist._types.enums import DataType
from llm_datadist._types.named_calls import names_calls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["Tensor", "TensorDesc"]

_BF16_SHIFT = np.uint32(16)
_DATA_TYPES = {
    dtype: data_type
    for data_type, dtype in NUMPY_TYPES.items()
    if data_type is not DataType.DT_BF16
}


@names_calls
@final
class TensorDesc:
    """Element type and shape of a Tensor.

    Args:
        dtype: Element type.
        shape: Dimensions, outermost first: a list or tuple of integers.

    Raises:
        TypeError: A wrong type.
        ValueError: A negative dimension.
    Source: api.md 8. Immutable, hashable, equal by value.
    """

    __slots__ = ("_dtype", "_shape")

    def __init__(self, dtype: DataType, shape: Sequence[int]) -> None:
        self._dtype = check_instance("dtype", dtype, DataType)
        self._shape = tuple(check_list_of_ints("shape", shape, 0, INT64_MAX))

    @property
    def dtype(self) -> DataType:
        """Element type."""
        return self._dtype

    @property
    def shape(self) -> list[int]:
        """Dimensions, outermost first; a new list each time."""
        return list(self._shape)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TensorDesc):
            return (self._dtype, self._shape) == (other._dtype, other._shape)
        return NotImplemented

    def __hash__(self) -> int:
        return hash((self._dtype, self._shape))

    def __repr__(self) -> str:
        return f"TensorDesc(dtype={self._dtype}, shape={list(self._shape)})"


@names_calls
@final
class Tensor:
    """Numbers of one type and shape.

    Args:
        data: A numpy array, whose memory the tensor shares if type and shape fit and it is
            contiguous, or what numpy makes one of. For DT_BF16: bits as uint16, or numbers, which
            are rounded.
        tensor_desc: Type and shape; None for those of `data`.

    Raises:
        TypeError: tensor_desc is no TensorDesc, or numpy's type of `data` is none of the API.
        LLMException: LLM_PARAM_INVALID: `data` has another number of elements than tensor_desc, or
            the type is DT_STRING.
    Source: api.md 8.
    """

    __slots__ = ("_array", "_desc")

    def __init__(self, data: ArrayLike, tensor_desc: TensorDesc | None = None) -> None:
        if tensor_desc is None:
            self._array = np.asarray(data)
            data_type = _DATA_TYPES.get(self._array.dtype)
            if data_type is None:
                raise wrong_type("data", data, "an array of a type of DataType, or give a desc")
            self._desc = TensorDesc(data_type, self._array.shape)
            return
        self._desc = check_instance("tensor_desc", tensor_desc, TensorDesc)
        array = _elements(data, tensor_desc.dtype)
        if array.size != np.prod(tensor_desc.shape, dtype=object):
            raise invalid(
                "Tensor",
                f"data has {array.size} elements, and {tensor_desc!r} has another number",
                "give data and tensor_desc of equal size",
            )
        self._array = array.reshape(tensor_desc.shape)

    @property
    def tensor_desc(self) -> TensorDesc:
        """Element type and shape."""
        return self._desc

    def numpy(self, copy: bool = False) -> NDArray[Any]:
        """Return the numbers as a numpy array of the same shape.

        Args:
            copy: Whether the array has memory of its own. Without it, the array shares the memory
                of the tensor, and so that of the cache whose tensor it is: writing one writes all.
                numpy has no DT_BF16, which is always copied, as float32.

        Raises:
            TypeError: copy is no bool.
        """
        check_bool("copy", copy)
        if self._desc.dtype is DataType.DT_BF16:
            bits = np.asarray(self._array.astype(np.uint32) << _BF16_SHIFT, np.uint32)
            return bits.view(np.float32)
        return self._array.copy() if copy else self._array

    def __repr__(self) -> str:
        return f"Tensor(tensor_desc={self._desc!r})"


def _elements(data: ArrayLike, data_type: DataType) -> NDArray[Any]:
    """Return data as an array of a type of the API; DT_BF16 as its bits."""
    if data_type is DataType.DT_STRING:
        raise invalid("Tensor", "the type is DT_STRING", "use a type of numbers")
    array = np.asarray(data)
    if data_type is not DataType.DT_BF16 or array.dtype == np.uint16:
        return np.asarray(array, NUMPY_TYPES[data_type])
    floats = np.asarray(array, np.float32)
    bits = floats.view(np.uint32)
    to_even = np.uint32(0x7FFF) + ((bits >> _BF16_SHIFT) & np.uint32(1))
    rounded = np.where(np.isnan(floats), bits | np.uint32(1 << 22), bits + to_even)
    return np.asarray(rounded >> _BF16_SHIFT, np.uint16)
