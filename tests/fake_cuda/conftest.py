"""Tests of the stand-in for libcuda.so.1, by its own functions. They run in a process of their own:
`tests/devices/test_stand_in.py` starts it.
"""

import ctypes

import pytest

from support.fake_cuda import FakeCuda
from support.gpu import STAND_IN

MIB = 1 << 20


class Cuda(FakeCuda):
    """The driver API as far as these tests need it."""

    def __init__(self, path):
        super().__init__(path)
        self.call("cuInit", 0)

    def context(self, device=0):
        context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        return context

    def allocate(self, size, byte=None):
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        if byte is not None:
            self.write(address.value, bytes([byte]) * size)
        return address.value

    def free(self, address):
        self.call("cuMemFree_v2", ctypes.c_uint64(address))

    def write(self, address, data, expected=0):
        self.call(
            "cuMemcpyHtoD_v2",
            ctypes.c_uint64(address),
            data,
            ctypes.c_size_t(len(data)),
            expected=expected,
        )

    def read(self, address, size, expected=0):
        data = ctypes.create_string_buffer(size)
        self.call(
            "cuMemcpyDtoH_v2",
            data,
            ctypes.c_uint64(address),
            ctypes.c_size_t(size),
            expected=expected,
        )
        return data.raw

    def stream(self):
        stream = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(stream), 1)
        return stream

    def copy(self, to, source, size, stream, expected=0):
        self.call(
            "cuMemcpyAsync",
            ctypes.c_uint64(to),
            ctypes.c_uint64(source),
            ctypes.c_size_t(size),
            stream,
            expected=expected,
        )


@pytest.fixture
def cuda():
    if not STAND_IN:
        pytest.skip("only with the driver that stands in")
    made = Cuda(STAND_IN)
    made.call("cuCtxSetCurrent", made.context(0))
    yield made
    made.reset()
    made.call("cuCtxSetCurrent", None)
