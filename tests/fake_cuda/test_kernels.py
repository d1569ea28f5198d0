"""The stand-in's launches: of kernels that a module has, and only where a GPU could reach."""

import ctypes
from pathlib import Path

import numpy as np

PTX = Path(__file__).parents[2] / "native" / "cuda" / "kernels" / "kernels.ptx"
SIZE = 4096


def kernel(cuda, name):
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    cuda.call("cuModuleLoadData", ctypes.byref(module), PTX.read_bytes())
    cuda.call("cuModuleGetFunction", ctypes.byref(function), module, name)
    return function


def pinned(cuda, data):
    memory = ctypes.c_void_p()
    cuda.call("cuMemHostAlloc", ctypes.byref(memory), ctypes.c_size_t(data.nbytes), 1)
    ctypes.memmove(memory, data.ctypes.data, data.nbytes)
    return memory.value


def copy(cuda, *items):
    """Launch a copy of (to, from, size) each; return the stream's result."""
    stream = cuda.stream()
    words = np.array(items, np.uint64)
    values = ctypes.c_uint64(pinned(cuda, words)), ctypes.c_uint32(len(items))
    arguments = (ctypes.c_void_p * 2)(*map(ctypes.addressof, values))
    block = 1, 1, 1, 512, 1, 1, 0
    cuda.call("cuLaunchKernel", kernel(cuda, b"ldd_copy_list"), *block, stream, arguments, None)
    return cuda.raw("cuStreamSynchronize", stream)


def test_a_module_has_the_kernels_of_its_text(cuda):
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    cuda.call("cuModuleLoadData", ctypes.byref(module), b"no PTX", expected=200)
    cuda.call("cuModuleLoadData", ctypes.byref(module), PTX.read_bytes())
    cuda.call("cuModuleGetFunction", ctypes.byref(function), module, b"other", expected=500)


def test_the_last_item_is_copied_first(cuda):
    first, second = cuda.allocate(SIZE, 1), cuda.allocate(SIZE, 2)
    third = cuda.allocate(SIZE, 3)
    assert copy(cuda, (second, first, SIZE), (third, second, SIZE)) == 0
    assert cuda.read(third, 1) == b"\2"


def test_pageable_memory_ends_the_context(cuda):
    pageable = ctypes.create_string_buffer(SIZE)
    assert copy(cuda, (cuda.allocate(SIZE), ctypes.addressof(pageable), SIZE)) == 700


def test_another_device_s_memory_ends_the_context_unless_access_is_enabled(cuda):
    cuda.call("cuCtxSetCurrent", cuda.context(1))
    other = cuda.allocate(SIZE, 5)
    cuda.call("cuCtxSetCurrent", cuda.context(0))
    memory = cuda.allocate(SIZE)
    assert copy(cuda, (memory, other, SIZE)) == 700
    cuda.raw("fake_cuda_revive")
    cuda.call("cuCtxEnablePeerAccess", cuda.context(1), 0)
    assert copy(cuda, (memory, other, SIZE)) == 0
    assert cuda.read(memory, 1) == b"\5"


def test_a_stream_s_context(cuda):
    stream, context = cuda.stream(), ctypes.c_void_p()
    cuda.call("cuCtxSetCurrent", None)
    cuda.call("cuStreamGetCtx", stream, ctypes.byref(context))
    assert context.value == cuda.context(0).value
    cuda.call("cuStreamGetCtx", None, ctypes.byref(context), expected=201)
    cuda.call("cuStreamGetCtx", ctypes.byref(context), ctypes.byref(context), expected=400)
