"""Memory of NVIDIA GPUs: recognizes its addresses, and lets native threads copy it.

Uses only libcuda, the driver's library, which every machine with such a GPU has. Nothing is loaded
into a process that does not use a GPU.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import numpy as np

from llm_datadist import _native

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_datadist._types.streams import StreamPoint

__all__ = [
    "DriverUnavailable",
    "GpuPoolMemory",
    "PinnedMemory",
    "StreamEvent",
    "device_of",
    "load_driver",
    "warn_without_kernels",
]

logger = logging.getLogger("llm_datadist")

_warned: Final[set[int]] = set()
"""GPUs whose driver refuses the library's kernels, as was logged."""


class DriverUnavailable(Exception):
    """This machine has no usable GPU; the text says why."""


def load_driver() -> None:
    """Load the driver, so that `device_of` recognizes GPU addresses. Idempotent.

    Raises:
        DriverUnavailable: There is no driver, or no GPU.
    """
    problem = _native.load_gpu_driver()
    if problem:
        raise DriverUnavailable(problem)


def device_of(addresses: Sequence[int]) -> int | None:
    """Return the ordinal of the GPU whose memory all addresses are, or None for host memory.

    Managed memory counts as host memory: host threads can touch it. The native core can copy the
    GPU's memory afterwards.

    Raises:
        ValueError: The addresses belong to different memories; the text says which.
        DriverUnavailable: The addresses are a GPU's, but its driver does not work.
    """
    found: dict[int, int] = {}
    for device, address in zip(
        _native.gpus_of(np.array(addresses, np.uint64)), addresses, strict=True
    ):
        found.setdefault(device, address)
    if len(found) > 1:
        where = " and ".join(
            f"{address:#x} is {'host memory' if device < 0 else f'of GPU {device}'}"
            for device, address in found.items()
        )
        raise ValueError(f"{where}: one cache has to be in one memory")
    device = next(iter(found), -1)
    if device < 0:
        return None
    problem = _native.prepare_gpu(device)
    if problem:
        raise DriverUnavailable(problem)
    return device


def warn_without_kernels(device: int) -> None:
    """Load the library's kernels into a GPU, and log once if its driver refuses them.

    Copy engines then copy what a kernel would, and checksums are computed on the host.
    """
    if device in _warned:
        return
    problem = _native.gpu_kernels_problem(device)
    if problem:
        _warned.add(device)
        logger.warning(
            "GPU %d: its driver refuses the kernels of the library (%s): copy engines copy small "
            "blocks, which is slower; update the driver, or set llm.GpuCopy to engine",
            device,
            problem,
        )


class StreamEvent:
    """A point in a stream of the caller that can be waited for.

    Args:
        point: What the caller has named; for a stream, all work that it has been given so far.
        device: GPU of a default stream, if neither the caller nor its thread names one.

    Raises:
        DriverUnavailable: This process has no driver of GPUs, or it refuses the handle.
    """

    def __init__(self, point: StreamPoint, device: int) -> None:
        self._kept = point.owner
        device = device if point.device is None else point.device
        make = _native.GpuEvent.record if point.kind == "stream" else _native.GpuEvent.borrow
        try:
            self._native = make(point.handle, device)
        except RuntimeError as error:
            raise DriverUnavailable(str(error)) from error

    def wait(self, deadline_ns: int, node: _native.Node | None = None) -> tuple[int, int, int, int]:
        """Wait, GIL released; return (code, errno, index, moved_bytes).

        The end of the node ends it.
        """
        return self._native.wait(deadline_ns, node)


class GpuPoolMemory:
    """Memory of one pool on a GPU, which peers on this host can map.

    Args:
        size: Bytes, at least; all of them are taken at once.
        ordinal: The GPU.

    Raises:
        DriverUnavailable: There is no such GPU, or it or its driver has no virtual memory.
        MemoryError: The GPU has less free memory; the text has the numbers.
    """

    def __init__(self, size: int, ordinal: int) -> None:
        count = len(_native.gpu_identities())
        if ordinal >= count:
            gpus = "1 GPU, number 0" if count == 1 else f"{count} GPUs, 0 to {count - 1}"
            raise DriverUnavailable(f"there is no GPU {ordinal}: this process sees {gpus}")
        pool, is_full, problem = _native.make_gpu_pool(ordinal, size)
        if is_full:
            raise MemoryError(
                f"{size} bytes asked of GPU {ordinal}, which has {_memory_of(ordinal)}"
            )
        if pool is None:
            raise DriverUnavailable(problem)
        self._pool: _native.GpuPool | None = pool
        self.ordinal = ordinal
        self.address: int = pool.address
        self.size: int = pool.size

    def pieces(self, address: int, size: int) -> tuple[int, int] | None:
        """Return (address, size) of the allocations that have bytes of a range; None: none have."""
        pool = self._pool
        begin, end = max(address, self.address), min(address + size, self.address + self.size)
        if pool is None or begin >= end:
            return None
        unit = pool.piece_bytes
        first = self.address + (begin - self.address) // unit * unit
        last = min(self.address - (self.address - end) // unit * unit, self.address + self.size)
        return first, last - first

    def replace(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Put new memory behind the allocations that have bytes of (address, size) ranges.

        Nothing may use these allocations meanwhile. Their other bytes are kept; those of the ranges
        have any value afterwards.

        Raises:
            MemoryError: The GPU has less free memory. Nothing has changed.
            DriverUnavailable: The driver refuses. Nothing has changed.
        """
        assert self._pool is not None
        begins, sizes = ([each[at] for each in ranges] for at in (0, 1))
        is_full, problem = self._pool.replace(begins, sizes)
        if is_full:
            raise MemoryError(f"{problem}; GPU {self.ordinal} has {_memory_of(self.ordinal)}")
        if problem:
            raise DriverUnavailable(problem)

    def close(self) -> None:
        """Free the memory; its addresses become invalid. Idempotent."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


class PinnedMemory:
    """Host memory that GPUs reach without the driver's own buffers, until `close`.

    Args:
        address, size: Of the memory, which must be mapped until `close`.
        ordinal: A GPU of this process; the others reach the memory as well.

    Raises:
        MemoryError: The driver refuses.
    """

    def __init__(self, address: int, size: int, ordinal: int) -> None:
        problem = _native.pin_host_memory(ordinal, address, size)
        if problem:
            raise MemoryError(f"{size} bytes cannot be pinned: {problem}")
        self._pinned: tuple[int, int] | None = (ordinal, address)

    def close(self) -> None:
        """Make it ordinary memory again. Idempotent."""
        if self._pinned is not None:
            _native.unpin_host_memory(*self._pinned)
            self._pinned = None


def _memory_of(ordinal: int) -> str:
    free, total = _native.gpu_memory(ordinal)
    return f"{free} bytes free of {total}"
