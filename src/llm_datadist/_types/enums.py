"""Enumerations of the public interface.

Source: api.md 2.
"""

from __future__ import annotations

from enum import Enum, unique

from llm_datadist._errors import NamedIntEnum, invalid

__all__ = ["DataType", "LLMRole", "Memtype", "Placement", "RegisterMemStatus"]


@unique
class LLMRole(NamedIntEnum):
    """What an instance is for; a label only. Prints as `Prompt`, `Decoder`, `Mix`."""

    PROMPT = 1
    DECODER = 2
    MIX = 3

    def __str__(self) -> str:
        return self.name.capitalize()


@unique
class Placement(NamedIntEnum):
    """Where the tensors of a cache live. DEVICE means host memory where there is no accelerator."""

    HOST = 0
    DEVICE = 1

    def __str__(self) -> str:
        return f"Placement.{self.name}"


@unique
class Memtype(Enum):
    """Kind of memory that a `MemInfo` names."""

    MEM_TYPE_DEVICE = 0
    MEM_TYPE_HOST = 1


@unique
class RegisterMemStatus(Enum):
    """State of a domain: OK once every pair is linked; FAILED is final."""

    OK = 0
    PREPARING = 1
    FAILED = 2


@unique
class DataType(Enum):
    """Element type of a tensor. DT_STRING exists but cannot be in a cache."""

    DT_FLOAT = 0
    DT_FLOAT16 = 1
    DT_INT8 = 2
    DT_INT32 = 3
    DT_UINT8 = 4
    DT_INT16 = 6
    DT_UINT16 = 7
    DT_UINT32 = 8
    DT_INT64 = 9
    DT_UINT64 = 10
    DT_DOUBLE = 11
    DT_BOOL = 12
    DT_STRING = 13
    DT_BF16 = 27

    @property
    def itemsize(self) -> int:
        """Bytes of one element *(extension)*.

        Raises:
            LLMException: LLM_PARAM_INVALID for DT_STRING, whose elements have no fixed size.
        """
        size = _ITEMSIZES.get(self.value)
        if size is None:
            raise invalid(
                "CacheDesc",
                f"data_type {self.name} has no fixed element size",
                "use a numeric data type",
            )
        return size


_ITEMSIZES = {
    number: size
    for size, numbers in {1: (2, 4, 12), 2: (1, 6, 7, 27), 4: (0, 3, 8), 8: (9, 10, 11)}.items()
    for number in numbers
}
