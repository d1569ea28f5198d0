"""The stand-in's memory: only its own functions reach it."""

import ctypes
import os
import signal

import numpy as np
import pytest

from llm_datadist import _native

PAGE = 4096


def words(*values):
    return np.array(values, np.uint64)


def attribute(cuda, which, address, kind=ctypes.c_int):
    value = kind()
    status = cuda.raw("cuPointerGetAttribute", ctypes.byref(value), which, ctypes.c_uint64(address))
    return value.value if status == 0 else None


def test_a_touch_of_device_memory_ends_the_process(cuda):
    memory = cuda.allocate(PAGE, 7)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        ctypes.string_at(memory, 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGSEGV


def test_a_system_call_cannot_read_device_memory(cuda):
    memory = cuda.allocate(PAGE, 7)
    readable = cuda.context()  # any host memory
    assert _native.probe(words(ctypes.addressof(readable)), words(1), 1 << 62) == b"\1"
    assert _native.probe(words(memory), words(1), 1 << 62) == b"\0"
    with pytest.raises(OSError, match="Bad address"):
        os.write(os.memfd_create("any"), (ctypes.c_char * 1).from_address(memory))


def test_the_driver_knows_whose_a_pointer_is(cuda):
    memory = cuda.allocate(PAGE)
    assert (attribute(cuda, 2, memory), attribute(cuda, 9, memory)) == (2, 0)
    cuda.call("cuCtxSetCurrent", cuda.context(1))
    assert attribute(cuda, 9, cuda.allocate(PAGE)) == 1
    assert attribute(cuda, 2, ctypes.addressof(ctypes.c_int())) is None


def test_no_copy_goes_beyond_an_allocation(cuda):
    """Adjacent ones included."""
    first, second = cuda.allocate(PAGE, 1), cuda.allocate(PAGE, 2)
    assert second == first + PAGE
    cuda.read(first + PAGE - 1, 1)
    cuda.read(first + PAGE - 1, 2, expected=1)
    begin, size = ctypes.c_uint64(), ctypes.c_size_t()
    arguments = ctypes.byref(begin), ctypes.byref(size), ctypes.c_uint64(second + 5)
    cuda.call("cuMemGetAddressRange_v2", *arguments)
    assert (begin.value, size.value) == (second, PAGE)


def test_freed_memory_is_gone_and_overwritten(cuda):
    memory = cuda.allocate(PAGE, 1)
    number = attribute(cuda, 7, memory, ctypes.c_uint64)
    cuda.free(memory)
    cuda.read(memory, 1, expected=1)
    again = cuda.allocate(PAGE)
    assert again == memory  # as drivers do
    assert attribute(cuda, 7, again, ctypes.c_uint64) != number
    assert cuda.read(again, 1) == b"\0"


def test_pinned_and_registered_memory(cuda):
    pinned = ctypes.c_void_p()
    cuda.call("cuMemHostAlloc", ctypes.byref(pinned), ctypes.c_size_t(PAGE), 1)
    assert attribute(cuda, 2, pinned.value) == 1
    ctypes.memset(pinned.value, 5, PAGE)  # host memory: the processor reaches it
    cuda.call("cuMemFreeHost", pinned)
    own = ctypes.create_string_buffer(PAGE)
    address = ctypes.addressof(own)
    cuda.call("cuMemHostRegister_v2", ctypes.c_void_p(address), ctypes.c_size_t(PAGE), 0)
    assert attribute(cuda, 2, address) == 1
    cuda.call("cuMemHostUnregister", ctypes.c_void_p(address))
    assert attribute(cuda, 2, address) is None


def test_a_bad_host_page_is_an_error_and_no_crash(cuda):
    memory = cuda.allocate(PAGE, 1)
    cuda.call("cuCtxSetCurrent", cuda.context(1))
    own = cuda.allocate(PAGE)
    cuda.call(
        "cuMemcpyDtoH_v2",
        ctypes.c_void_p(PAGE),
        ctypes.c_uint64(own),
        ctypes.c_size_t(8),
        expected=700,
    )
    cuda.read(own, 1, expected=700)  # the error stays with the context
    cuda.call("cuCtxSetCurrent", cuda.context(0))
    assert cuda.read(memory, 1) == b"\1"  # others go on
