"""Type of the block lists that calls accept, and names of such arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol, TypeAlias

__all__ = ["DLPACK_ERRORS", "PULL_NAMES", "BlockList", "IndexArray", "PullNames", "is_array"]

#: What array libraries raise from `__dlpack__`, for memory or a type that numpy cannot read.
DLPACK_ERRORS: Final = (AttributeError, BufferError, RuntimeError, TypeError, ValueError)


class IndexArray(Protocol):
    """A one-dimensional array of integers in host memory: numpy's, torch's, or another's."""

    def __dlpack__(self) -> object:
        """Return the array as a DLPack capsule."""

    def __len__(self) -> int:
        """Return the number of indices."""


BlockList: TypeAlias = Sequence[int] | IndexArray
"""0-based indices of blocks: a list, tuple or range, or an array."""


def is_array(value: object) -> bool:
    """Return whether a value is a range or an array, which may list blocks as a list does."""
    return isinstance(value, range) or hasattr(type(value), "__dlpack__")


class PullNames(NamedTuple):
    """Names that the arguments of a call of pull_blocks have, for errors."""

    cache: str
    src_blocks: str
    dst_blocks: str


#: Those of CacheManager.pull_blocks.
PULL_NAMES: Final = PullNames("dst_cache", "src_blocks", "dst_blocks")
