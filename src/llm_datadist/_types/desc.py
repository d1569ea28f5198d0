"""Description of a cache: number, shape and type of its tensors.

Source: api.md 5.1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, final

from llm_datadist._errors import LLMException, invalid
from llm_datadist._types.checks import (
    INT32_MAX,
    INT64_MAX,
    check_instance,
    check_int,
    check_list_of_ints,
    check_str,
    check_uint32,
)
from llm_datadist._types.enums import DataType, Placement
from llm_datadist._types.named_calls import names_calls

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CacheDesc"]


class _Shape(list[int]):
    """List of dimensions that also equals a tuple of them, as callers gave either."""

    __slots__ = ()
    __hash__ = None

    def __eq__(self, other: object) -> bool:
        return super().__eq__(list(other) if isinstance(other, tuple) else other)

    def __ne__(self, other: object) -> bool:
        return not self == other


@names_calls
@final
class CacheDesc:
    """Description of a cache: `num_tensors` tensors of one shape and type.

    Args:
        num_tensors: Number of tensors, uint32; 0 is refused at use.
        shape: Dimensions of each tensor, outermost first: a list, tuple or torch.Size of positive
            integers.
        data_type: Element type; DT_STRING is refused at use.
        placement: Where the tensors live.
        batch_dim_index: Which dimension is the batch, int32. A blocks cache counts blocks in
            dimension 0, whatever this says.
        seq_len_dim_index: Carried only, int32.
        kv_tensor_format: Carried only.

    Raises:
        TypeError: A wrong type.
        ValueError: An integer outside its width, a negative dimension, or a tensor of 2**63 bytes
            or more.
        LLMException: LLM_PARAM_INVALID: shape is empty or a dimension is 0.
    Source: api.md 5.1. Equal by value. Not hashable, as `update_dim` changes it; the library works
    on a copy of its own.
    """

    __slots__ = (
        "_batch_dim_index",
        "_data_type",
        "_kv_tensor_format",
        "_num_tensors",
        "_placement",
        "_seq_len_dim_index",
        "_shape",
        "_size",
    )

    def __init__(
        self,
        num_tensors: int,
        shape: Sequence[int],
        data_type: DataType,
        placement: Placement = Placement.DEVICE,
        batch_dim_index: int = 0,
        seq_len_dim_index: int = -1,
        kv_tensor_format: str | None = None,
    ) -> None:
        self._num_tensors = check_uint32("num_tensors", num_tensors)
        dimensions = check_list_of_ints("shape", shape, 0, INT64_MAX)
        self._data_type = check_instance("data_type", data_type, DataType)
        self._placement = check_instance("placement", placement, Placement)
        low = -INT32_MAX - 1
        self._batch_dim_index = check_int("batch_dim_index", batch_dim_index, low, INT32_MAX)
        self._seq_len_dim_index = check_int("seq_len_dim_index", seq_len_dim_index, low, INT32_MAX)
        if kv_tensor_format is not None:
            check_str("kv_tensor_format", kv_tensor_format)
        self._kv_tensor_format = kv_tensor_format
        self._set_shape(tuple(dimensions))

    def _set_shape(self, shape: tuple[int, ...]) -> None:
        """Take a shape of non-negative integers and compute the tensor's size, 0 for DT_STRING."""
        if not shape or 0 in shape:
            raise invalid(
                "CacheDesc",
                f"shape {list(shape)} " + ("has a dimension of 0" if shape else "is empty"),
                "give one or more dimensions, each at least 1",
            )
        itemsize = 0 if self._data_type is DataType.DT_STRING else self._data_type.itemsize
        elements = math.prod(shape)
        if elements * max(itemsize, 1) > INT64_MAX:
            raise ValueError(f"shape {list(shape)} makes a tensor of 2**63 bytes or more")
        self._shape = shape
        self._size = elements * itemsize

    @property
    def num_tensors(self) -> int:
        """Number of tensors."""
        return self._num_tensors

    @property
    def shape(self) -> list[int]:
        """Dimensions of each tensor; a new list each time, equal to a list or tuple of them."""
        return _Shape(self._shape)

    @property
    def data_type(self) -> DataType:
        """Element type."""
        return self._data_type

    @property
    def placement(self) -> Placement:
        """Where the tensors live."""
        return self._placement

    @property
    def batch_dim_index(self) -> int:
        """Which dimension is the batch."""
        return self._batch_dim_index

    @property
    def batch_dim(self) -> int:
        """The same as batch_dim_index."""
        return self._batch_dim_index

    @property
    def seq_len_dim_index(self) -> int:
        """Which dimension is the sequence; carried only."""
        return self._seq_len_dim_index

    @property
    def kv_tensor_format(self) -> str | None:
        """Layout label; carried only."""
        return self._kv_tensor_format

    @property
    def batch_size(self) -> int:
        """Slots of a contiguous cache: shape[batch_dim_index].

        Raises:
            LLMException: LLM_PARAM_INVALID: batch_dim_index is not a dimension of the shape.
        """
        return self.check_batch("CacheDesc")

    def check_batch(self, operation: str) -> int:
        """Return batch_size *(internal)*.

        Raises:
            LLMException: LLM_PARAM_INVALID: batch_dim_index is not a dimension of the shape.
        """
        if not 0 <= self._batch_dim_index < len(self._shape):
            raise self._unusable(
                f"batch_dim_index {self._batch_dim_index} is not a dimension of shape "
                f"{list(self._shape)}",
                "give the index of the batch dimension",
                operation,
            )
        return self._shape[self._batch_dim_index]

    @property
    def size(self) -> int:
        """Bytes of one tensor.

        Raises:
            LLMException: LLM_PARAM_INVALID for DT_STRING.
        """
        return self._size or self._data_type.itemsize

    @property
    def tensor_bytes(self) -> int:
        """Bytes of one tensor *(extension)*; the same as size."""
        return self.size

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot of one tensor of a contiguous cache *(extension)*.

        Raises:
            LLMException: LLM_PARAM_INVALID: the batch is not the outermost dimension, so a slot is
                not one piece of memory (a dimension of 1 may stand before it).
        """
        batch_size = self.batch_size
        if math.prod(self._shape[: self._batch_dim_index]) != 1:
            raise self._unusable(
                f"batch_dim_index {self._batch_dim_index} of shape {list(self._shape)} is not the "
                "outermost dimension, so its slots are not contiguous",
                "put the batch dimension first to address a slot",
            )
        return self.size // batch_size

    @property
    def num_blocks(self) -> int:
        """Blocks of a blocks cache *(extension)*: shape[0]."""
        return self._shape[0]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block of one tensor of a blocks cache *(extension)*."""
        return self.size // self._shape[0]

    def update_dim(self, index: int, value: int) -> None:
        """Change one dimension of the shape.

        Args:
            index: Which, int32; 0 is the outermost.
            value: Its new size.

        Raises:
            TypeError: Not integers.
            ValueError: value is negative, or the tensor would have 2**63 bytes or more; nothing has
                changed.
            LLMException: LLM_PARAM_INVALID: no such dimension, or value is 0; nothing has changed.
        Source: api.md 5.1. Caches that exist already keep the description that they were made with.
        """
        index = check_int("index", index, -INT32_MAX - 1, INT32_MAX)
        value = check_int("value", value, 0, INT64_MAX)
        if not 0 <= index < len(self._shape):
            raise self._unusable(
                f"index {index} is not a dimension of shape {list(self._shape)}",
                f"give an index in [0, {len(self._shape) - 1}]",
            )
        self._set_shape((*self._shape[:index], value, *self._shape[index + 1 :]))

    def check_usable(self, operation: str) -> None:
        """Check what the constructor lets pass but no cache can have *(internal)*.

        Raises:
            LLMException: LLM_PARAM_INVALID: num_tensors is 0, or data_type is DT_STRING.
        """
        if self._num_tensors == 0:
            raise self._unusable("num_tensors is 0", "give at least 1", operation)
        if self._size == 0:
            raise self._unusable(
                f"data_type {self._data_type.name} has no fixed element size",
                "use a numeric data type",
                operation,
            )

    def copy(self) -> CacheDesc:
        """Return an independent copy *(extension)*."""
        return CacheDesc(
            self._num_tensors,
            self._shape,
            self._data_type,
            self._placement,
            self._batch_dim_index,
            self._seq_len_dim_index,
            self._kv_tensor_format,
        )

    def _unusable(self, problem: str, remedy: str, operation: str = "CacheDesc") -> LLMException:
        return invalid(operation, problem, remedy)

    def _values(self) -> tuple[object, ...]:
        return (
            self._num_tensors,
            self._shape,
            self._data_type,
            self._placement,
            self._batch_dim_index,
            self._seq_len_dim_index,
            self._kv_tensor_format,
        )

    def __eq__(self, other: object) -> bool:
        if isinstance(other, CacheDesc):
            return self._values() == other._values()
        return NotImplemented

    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"CacheDesc(num_tensors={self._num_tensors}, shape={list(self._shape)}, "
            f"data_type={self._data_type}, placement={self._placement}, "
            f"batch_dim_index={self._batch_dim_index}, "
            f"seq_len_dim_index={self._seq_len_dim_index}, "
            f"kv_tensor_format={self._kv_tensor_format!r})"
        )
