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

__all__ = ["DriverUnavailable", "StreamEvent", "device_of", "load_driver", "warn_without_kernels"]

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

    def wait(self, deadline_ns: int) -> tuple[int, int, int, int]:
        """Wait, GIL released; return (code, errno, index, moved_bytes)."""
        return self._native.wait(deadline_ns)
