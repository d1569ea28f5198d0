"""A GPU's memory for tests, through the machine's driver or a stand-in for it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np

HERE = Path(__file__).parents[1] / "devices"
STAND_IN = os.environ.get("LLM_DATADIST_STAND_IN_DRIVER", "")
"""Path of the library that stands in for the driver; empty: the driver itself."""


def load():
    """Load the driver; None if there is none."""
    try:
        driver = ctypes.CDLL(STAND_IN or "libcuda.so.1", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return None
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return None
    return driver if count.value else None


class Gpu:
    """One GPU. `close` frees what was allocated."""

    def __init__(self, driver, ordinal=0):
        self._driver = driver
        self._context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), ordinal)
        self._allocated = []

    def allocate(self, size):
        """Return the address of zeroed memory."""
        address = ctypes.c_uint64()
        self._call("cuCtxSetCurrent", self._context)
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        self._allocated.append(address.value)
        self.write(address.value, np.zeros(size, np.uint8))
        return address.value

    def write(self, address, data):
        data = np.ascontiguousarray(data)
        self._call("cuCtxSetCurrent", self._context)
        self._call("cuMemcpyHtoD_v2", *_copy(ctypes.c_uint64(address), _at(data), data.nbytes))

    def read(self, address, shape):
        data = np.empty(shape, np.uint64)
        self._call("cuCtxSetCurrent", self._context)
        self._call("cuMemcpyDtoH_v2", *_copy(_at(data), ctypes.c_uint64(address), data.nbytes))
        return data

    def free(self, address):
        """Free memory; the driver first waits for all that the GPU does."""
        self._call("cuCtxSetCurrent", self._context)
        self._call("cuMemFree_v2", ctypes.c_uint64(address))
        self._allocated.remove(address)

    def close(self):
        for address in list(self._allocated):
            self.free(address)

    def call(self, name, *arguments):
        """Call the driver with the GPU's context."""
        self._call("cuCtxSetCurrent", self._context)
        self._call(name, *arguments)

    def _call(self, name, *arguments):
        status = getattr(self._driver, name)(*arguments)
        assert status == 0, f"{name}: {status}"


class VirtualGpu(Gpu):
    """One GPU, whose memory is virtual: a range of addresses over several allocations.

    Args:
        driver, ordinal: As for Gpu.
        exportable: Whether other processes can map it.
    """

    GRANULE = 2 << 20
    OFFSET = 1 << 15  # of what is returned, so that blocks lie in two allocations

    def __init__(self, driver, ordinal=0, *, exportable=True):
        super().__init__(driver, ordinal)
        self._properties = (ctypes.c_int * 8)(1, int(exportable), 1, ordinal)
        self._access = (ctypes.c_int * 3)(1, ordinal, 3)
        self._reserved = {}

    def allocate(self, size):
        whole = -(-(size + self.OFFSET) // self.GRANULE) * self.GRANULE
        address = ctypes.c_uint64()
        self._call("cuCtxSetCurrent", self._context)
        self._call("cuMemAddressReserve", ctypes.byref(address), ctypes.c_size_t(whole), 0, 0, 0)
        self._reserved[address.value] = whole
        self._map(address.value, whole)
        return address.value + self.OFFSET

    def replace(self, address):
        """Put other memory behind what was allocated there; zeroed."""
        self._call("cuCtxSetCurrent", self._context)
        self._unmap(address - self.OFFSET)
        self._map(address - self.OFFSET, self._reserved[address - self.OFFSET])

    def close(self):
        self._call("cuCtxSetCurrent", self._context)
        for address, size in self._reserved.items():
            self._unmap(address)
            self._call("cuMemAddressFree", ctypes.c_uint64(address), ctypes.c_size_t(size))
        self._reserved.clear()

    def _map(self, address, size):
        granule = ctypes.c_size_t(self.GRANULE)
        for begin in range(address, address + size, self.GRANULE):
            handle = ctypes.c_uint64()
            self._call("cuMemCreate", ctypes.byref(handle), granule, self._properties, 0)
            self._call("cuMemMap", ctypes.c_uint64(begin), granule, 0, handle, 0)
            self._call("cuMemRelease", handle)
        one = ctypes.c_size_t(1)
        whole = ctypes.c_uint64(address), ctypes.c_size_t(size)
        self._call("cuMemSetAccess", *whole, self._access, one)
        self.write(address, np.zeros(size, np.uint8))

    def _unmap(self, address):
        for begin in range(address, address + self._reserved[address], self.GRANULE):
            self._call("cuMemUnmap", ctypes.c_uint64(begin), ctypes.c_size_t(self.GRANULE))


class ProgramStream:
    """A stream as a program has it, with copies in it. `close` waits for them."""

    def __init__(self, driver, gpu):
        self._call, self._kept = gpu.call, []
        self._handle = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(self._handle), 1)
        self.handle = self._handle.value

    def write(self, address, data):
        data = np.ascontiguousarray(data)
        self._kept.append(data)
        self.copy(address, data.ctypes.data, data.nbytes)

    def copy(self, to, source, size):
        addresses = ctypes.c_uint64(to), ctypes.c_uint64(source)
        self._call("cuMemcpyAsync", *addresses, ctypes.c_size_t(size), self._handle)

    def event(self):
        """Return the handle of an event behind what the stream has been given."""
        event = ctypes.c_void_p()
        self._call("cuEventCreate", ctypes.byref(event), 2)
        self._call("cuEventRecord", event, self._handle)
        return event.value

    def close(self):
        self._call("cuStreamSynchronize", self._handle)


def _at(data):
    return ctypes.c_void_p(data.ctypes.data)


def _copy(to, source, size):
    return to, source, ctypes.c_size_t(size)
