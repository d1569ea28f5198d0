"""Memory of a GPU for the figures, by the driver's own functions. Needs no package of a GPU."""

from __future__ import annotations

import ctypes
import platform
import re
from pathlib import Path

import numpy as np

import llm_datadist
from llm_datadist import _native


class Gpu:
    """The first GPU, its context current on the thread that makes the object."""

    def __init__(self):
        problem = _native.load_gpu_driver()
        if problem:
            raise SystemExit(f"no GPU: {problem}")
        self.driver = ctypes.CDLL("libcuda.so.1")
        context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self.call("cuCtxSetCurrent", context)

    def call(self, name, *arguments):
        status = getattr(self.driver, name)(*arguments)
        if status != 0:
            raise RuntimeError(f"{name}: {status}")

    @property
    def is_stand_in(self):
        return hasattr(self.driver, "fake_cuda_version")

    def facts(self):
        version, name = ctypes.c_int(), ctypes.create_string_buffer(100)
        self.call("cuDriverGetVersion", ctypes.byref(version))
        card = "the stand-in for a driver"
        if not self.is_stand_in:
            self.call("cuDeviceGetName", name, 100, 0)
            card = name.value.decode()
        return {
            "card": card,
            "cuda": f"{version.value // 1000}.{version.value % 1000 // 10}",
            "driver": _driver_version(),
            "python": platform.python_version(),
            "kernel": platform.release(),
            "llm_datadist": llm_datadist.__version__,
        }

    def allocate(self, size):
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def free(self, address):
        self.call("cuMemFree_v2", ctypes.c_uint64(address))

    def pinned(self, size):
        memory = ctypes.c_void_p()
        self.call("cuMemHostAlloc", ctypes.byref(memory), ctypes.c_size_t(size), 1)
        return memory.value

    def free_pinned(self, address):
        self.call("cuMemFreeHost", ctypes.c_void_p(address))

    def write(self, address, data):
        copied(address, np.ascontiguousarray(data).ctypes.data, data.nbytes)

    def read(self, address, size):
        data = np.empty(size // 8, np.uint64)
        copied(data.ctypes.data, address, size)
        return data


def _driver_version():
    """Return the version of the kernel's driver; it is told in a sentence with many numbers."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return found.group() if found else "unknown"


def copied(to, source, size):
    """Copy with one call of the driver, through the library's table of its functions."""
    code = _native.gpu_copy(0, to, source, size)[0]
    if code != _native.OK:
        raise RuntimeError(f"a copy of the driver failed with {code}")
