"""Layout of a cache's tensors; plans and their descriptors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import msgspec
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_ADDRESS_SPACE = 2**64 - 1  # the end of a range is an address, too


Words: TypeAlias = "NDArray[np.uint64] | bytes"


class Plan(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Descriptors of one transfer: where the memory is on both sides, and lengths.

    A pull reads the remote ranges into the local ones, a push the other way round. For a copy
    within the process the local ranges are the destination and the remote ones the source.

    Attributes:
        words: Local addresses, remote addresses and lengths, three rows one after the other, as a
            contiguous uint64 array, or as bytes, which are quicker to make for a few descriptors.
            The native core takes them as they are.
        total_bytes: Sum of the lengths.
    """

    words: Words
    total_bytes: int

    @classmethod
    def of(
        cls,
        local: NDArray[np.uint64],
        remote: NDArray[np.uint64],
        length: NDArray[np.uint64],
        total_bytes: int | None = None,
    ) -> Plan:
        """Join three arrays of one length; without `total_bytes` the lengths are added up."""
        words = np.stack((local, remote, length)).reshape(-1)
        return cls(words, int(length.sum()) if total_bytes is None else total_bytes)

    @classmethod
    def joined(cls, plans: Sequence[Plan]) -> Plan:
        """Return the descriptors of several plans as one."""
        rows = np.concatenate([plan.rows for plan in plans], axis=1)
        return cls(rows.reshape(-1), sum(plan.total_bytes for plan in plans))

    @property
    def rows(self) -> NDArray[np.uint64]:
        """Local addresses, remote addresses, lengths: uint64 of shape (3, descriptors)."""
        return np.frombuffer(self.words, np.uint64).reshape(3, -1)

    @property
    def local(self) -> NDArray[np.uint64]:
        """Local addresses."""
        local: NDArray[np.uint64] = self.rows[0]
        return local

    @property
    def remote(self) -> NDArray[np.uint64]:
        """Remote addresses."""
        remote: NDArray[np.uint64] = self.rows[1]
        return remote

    @property
    def length(self) -> NDArray[np.uint64]:
        """Lengths in bytes."""
        length: NDArray[np.uint64] = self.rows[2]
        return length


NO_PLAN = Plan(b"", 0)
"""No descriptors."""


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
