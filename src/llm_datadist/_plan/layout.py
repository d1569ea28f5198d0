"""Layout of a cache's tensors; plans and their descriptors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_ADDRESS_SPACE = 2**64 - 1  # the end of a range is an address, too


class Plan(NamedTuple):
    """Descriptors of one transfer, as C-contiguous uint64 arrays of equal length.

    `local` and `remote` say where the memory is, not which way the bytes go: a pull reads `remote`
    into `local`, a push the other way round. For a copy within the process `local` is the
    destination and `remote` the source.
    """

    local: NDArray[np.uint64]
    remote: NDArray[np.uint64]
    length: NDArray[np.uint64]
    total_bytes: int


class Piece(NamedTuple):
    """A part of a cache: `size` bytes at `addr`, all in one slot or block of one tensor."""

    tensor_index: int
    unit_index: int
    addr: int
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Addresses of a cache's tensors and their division into equal units (slots or blocks).

    Attributes:
        addrs: Address of each tensor, uint64.
        starts: The same addresses as Python integers.
        tensor_bytes: Bytes of one tensor.
        unit_bytes: Bytes of one slot (contiguous cache) or block (blocks cache).
        num_units: Slots or blocks of one tensor.
        all_tensors: Indices of all tensors.
    """

    addrs: NDArray[np.uint64]
    starts: tuple[int, ...]
    tensor_bytes: int
    unit_bytes: int
    num_units: int
    all_tensors: range

    @classmethod
    def of(
        cls, addrs: Sequence[int] | NDArray[np.uint64], tensor_bytes: int, num_units: int
    ) -> Layout:
        """Describe tensors of `tensor_bytes` bytes that divide into `num_units` units.

        Raises:
            ValueError: A tensor would end beyond the 64-bit address space.
        """
        array = np.ascontiguousarray(addrs, dtype=np.uint64)
        starts = tuple(array.tolist())
        if starts and max(starts) + tensor_bytes > _ADDRESS_SPACE:
            raise ValueError(
                f"{tensor_bytes} bytes at address {max(starts):#x} wrap the 64-bit address space"
            )
        unit_bytes = tensor_bytes // num_units
        return cls(array, starts, tensor_bytes, unit_bytes, num_units, range(len(starts)))

    @classmethod
    def raw(cls, addrs: Sequence[int], unit_bytes: int, num_units: int = 1) -> Layout:
        """Describe bare addresses (a TransferConfig's) as tensors of `num_units` units.

        Raises:
            ValueError: A tensor would end beyond the 64-bit address space.
        """
        return cls.of(addrs, unit_bytes * num_units, num_units)

    @property
    def num_tensors(self) -> int:
        """Number of tensors."""
        return len(self.starts)

    def divided(self, num_units: int) -> Layout:
        """Return the same tensors divided into another number of units."""
        unit_bytes = self.tensor_bytes // num_units
        return replace(self, unit_bytes=unit_bytes, num_units=num_units)

    def locate(self, addr: int, size: int) -> Iterator[Piece]:
        """Yield the slots or blocks that contain a part of `[addr, addr + size)`."""
        for tensor_index, start in enumerate(self.starts):
            first = max(addr - start, 0)
            last = min(addr + size - start, self.tensor_bytes)
            while first < last:
                unit = first // self.unit_bytes
                end = min(last, (unit + 1) * self.unit_bytes)
                yield Piece(tensor_index, unit, start + first, end - first)
                first = end
