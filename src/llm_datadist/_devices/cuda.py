"""Memory of NVIDIA GPUs: recognizes its addresses, and lets native threads copy it.

Uses only libcuda, the driver's library, which every machine with such a GPU has. Nothing is loaded
into a process that does not use a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llm_datadist import _native

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DriverUnavailable", "device_of", "load_driver"]


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
