"""Memory of NVIDIA GPUs: recognizes its addresses, and lets native threads copy it.

Uses only libcuda, the driver's library, which every machine with such a GPU has. Nothing is loaded
into a process that does not use a GPU.
"""

from __future__ import annotations

import ctypes
import os
import threading
from typing import TYPE_CHECKING, Any, Final

from llm_datadist import _native

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["DriverUnavailable", "device_of", "load_driver"]

_LIBRARY: Final = "libcuda.so.1"
_SUCCESS: Final = 0
_NON_BLOCKING: Final = 1
_MEMORY_TYPE: Final = 2
_IS_MANAGED: Final = 8
_DEVICE_ORDINAL: Final = 9
_ON_DEVICE: Final = 2


class DriverUnavailable(Exception):
    """This machine has no usable GPU; the text says why."""


_lock: Final = threading.Lock()
_queues: dict[int, tuple[int, int]] = {}


def load_driver() -> None:
    """Load the driver, so that `device_of` recognizes GPU addresses. Idempotent.

    Raises:
        DriverUnavailable: There is no driver, or no GPU.
    """
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise DriverUnavailable(f"{_LIBRARY} cannot be loaded ({error})") from error
    _check(driver, "cuInit", 0)
    count = ctypes.c_int()
    _check(driver, "cuDeviceGetCount", ctypes.byref(count))
    if count.value == 0:
        raise DriverUnavailable("the driver finds no GPU")


def device_of(addresses: Iterable[int]) -> int | None:
    """Return the ordinal of the GPU whose memory all addresses are, or None for host memory.

    Managed memory counts as host memory: host threads can touch it. The native core can copy the
    GPU's memory afterwards.

    Raises:
        ValueError: The addresses belong to different memories; the text says which.
        DriverUnavailable: The addresses are a GPU's, but its driver does not work.
    """
    try:
        driver = ctypes.CDLL(_LIBRARY, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return None  # this process uses no GPU
    found: dict[int | None, int] = {}
    for address in addresses:
        found.setdefault(_device_of(driver, address), address)
    if len(found) > 1:
        where = " and ".join(
            f"{address:#x} is {'host memory' if device is None else f'of GPU {device}'}"
            for device, address in found.items()
        )
        raise ValueError(f"{where}: one cache has to be in one memory")
    device = next(iter(found), None)
    if device is not None:
        _set_up(driver, device)
    return device


def _device_of(driver: ctypes.CDLL, address: int) -> int | None:
    if _attribute(driver, _MEMORY_TYPE, address) != _ON_DEVICE:
        return None
    if _attribute(driver, _IS_MANAGED, address):
        return None
    return _attribute(driver, _DEVICE_ORDINAL, address)


def _attribute(driver: ctypes.CDLL, which: int, address: int) -> int | None:
    """Return an attribute of a pointer, or None if the driver does not know the pointer."""
    value = ctypes.c_int(0)
    status = driver.cuPointerGetAttribute(ctypes.byref(value), which, ctypes.c_uint64(address))
    return value.value if status == _SUCCESS else None


def _set_up(driver: ctypes.CDLL, device: int) -> None:
    """Let the native core copy that GPU's memory.

    It uses the primary context, which all libraries share, and its own stream: copies must not wait
    for the program's kernels, nor kernels for copies.
    """
    with _lock:
        if device in _queues:
            return
        before, context, stream = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        _check(driver, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        _check(driver, "cuCtxGetCurrent", ctypes.byref(before))
        _check(driver, "cuCtxSetCurrent", context)
        try:
            _check(driver, "cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
        finally:
            _check(driver, "cuCtxSetCurrent", before)
        _queues[device] = context.value or 0, stream.value or 0
        _native.set_device_driver(
            _address(driver.cuCtxSetCurrent),
            _address(driver.cuMemcpyAsync),
            _address(driver.cuStreamSynchronize),
            [_queues.get(each, (0, 0)) for each in range(max(_queues) + 1)],
        )


def _check(driver: ctypes.CDLL, function: str, *arguments: object) -> None:
    status = getattr(driver, function)(*arguments)
    if status != _SUCCESS:
        raise DriverUnavailable(f"{function} of the driver failed with {status}")


def _address(function: Any) -> int:  # noqa: ANN401 - ctypes has no type for it
    return ctypes.cast(function, ctypes.c_void_p).value or 0
