"""The stand-in's streams: in order, later, each for itself; failures on demand."""

import ctypes
import os
import threading
import time

import pytest

SIZE = 4096
NOT_READY = 600


@pytest.fixture
def slow(cuda):
    cuda.delay(30_000)
    return cuda


def event_in(cuda, stream):
    event = ctypes.c_void_p()
    cuda.call("cuEventCreate", ctypes.byref(event), 2)
    cuda.call("cuEventRecord", event, stream)
    return event


def test_a_copy_reads_its_source_when_its_turn_comes(cuda):
    memory, stream = cuda.allocate(SIZE), cuda.stream()
    source = ctypes.create_string_buffer(b"1" * SIZE, SIZE)
    cuda.delay(30_000)
    cuda.copy(memory, ctypes.addressof(source), SIZE, stream)
    assert cuda.raw("cuStreamQuery", stream) == NOT_READY
    source.raw = b"2" * SIZE
    cuda.call("cuStreamSynchronize", stream)
    cuda.delay(0)
    assert cuda.read(memory, 1) == b"2"


def test_operations_of_a_stream_run_in_order(slow):
    first, second, stream = slow.allocate(SIZE, 1), slow.allocate(SIZE, 2), slow.stream()
    third = slow.allocate(SIZE, 3)
    slow.copy(second, first, SIZE, stream)
    slow.copy(third, second, SIZE, stream)
    event = event_in(slow, stream)
    assert slow.raw("cuEventQuery", event) == NOT_READY
    slow.call("cuEventSynchronize", event)
    assert slow.raw("cuEventQuery", event) == 0
    slow.delay(0)
    assert slow.read(third, 1) == b"\1"


def test_a_stream_waits_for_an_event_of_another(slow):
    first, second, third = (slow.allocate(SIZE, byte) for byte in (1, 2, 3))
    one, other = slow.stream(), slow.stream()
    slow.copy(second, first, SIZE, one)
    slow.call("cuStreamWaitEvent", other, event_in(slow, one), 0)
    slow.copy(third, second, SIZE, other)
    slow.call("cuStreamSynchronize", other)
    slow.delay(0)
    assert slow.read(third, 1) == b"\1"


def test_a_stream_belongs_to_its_context(cuda):
    memory, stream = cuda.allocate(SIZE, 1), cuda.stream()
    cuda.call("cuCtxSetCurrent", cuda.context(1))
    cuda.copy(memory, memory, SIZE, stream, expected=400)
    cuda.call("cuCtxSetCurrent", None)
    cuda.copy(memory, memory, SIZE, stream, expected=201)


def test_many_copies_in_one_call(cuda):
    sources = [cuda.allocate(SIZE, byte) for byte in (1, 2)]
    targets, stream = [cuda.allocate(SIZE) for _ in sources], cuda.stream()
    words = ctypes.c_uint64 * 2
    failed, first = ctypes.c_size_t(), (ctypes.c_size_t * 1)(0)
    attributes = (ctypes.c_int * 6)(1)  # sources are read in the order of the stream
    arguments = words(*targets), words(*sources), (ctypes.c_size_t * 2)(SIZE, SIZE)
    tail = ctypes.c_size_t(2), attributes, first, ctypes.c_size_t(1), ctypes.byref(failed)
    cuda.call("cuMemcpyBatchAsync", *arguments, *tail, None, expected=1)  # no default stream
    cuda.call("cuMemcpyBatchAsync", *arguments, *tail, stream)
    cuda.call("cuStreamSynchronize", stream)
    assert [cuda.read(each, 1) for each in targets] == [b"\1", b"\2"]


def test_the_nth_call_fails(cuda):
    memory, stream = cuda.allocate(SIZE, 1), cuda.stream()
    cuda.fail("cuMemcpyAsync:2:2")
    cuda.copy(memory, memory, 1, stream)
    cuda.copy(memory, memory, 1, stream, expected=2)
    cuda.copy(memory, memory, 1, stream)
    cuda.fail("cuMemcpyAsync:*:2")
    cuda.copy(memory, memory, 1, stream, expected=2)
    cuda.copy(memory, memory, 1, stream, expected=2)


def test_a_call_that_does_not_return(cuda):
    cuda.block("cuMemAlloc:1")
    ended = threading.Event()

    def allocate():
        cuda.call("cuCtxSetCurrent", cuda.context(0))
        cuda.allocate(SIZE)
        ended.set()

    thread = threading.Thread(target=allocate)
    thread.start()
    while not cuda.raw("fake_cuda_calls", b"cuMemAlloc"):
        time.sleep(0.001)
    cuda.allocate(SIZE, 1)  # others go on
    assert not ended.is_set()
    cuda.unblock()
    thread.join()
    assert ended.is_set()


def test_a_device_that_hangs(cuda):
    memory, stream = cuda.allocate(SIZE, 1), cuda.stream()
    cuda.hang(0, hangs=True)
    cuda.copy(memory, memory, SIZE, stream)
    assert cuda.raw("cuStreamQuery", stream) == NOT_READY
    cuda.call("cuCtxSetCurrent", cuda.context(1))
    assert cuda.read(cuda.allocate(SIZE, 2), 1) == b"\2"  # the other device works
    cuda.call("cuCtxSetCurrent", cuda.context(0))
    cuda.hang(0, hangs=False)
    cuda.call("cuStreamSynchronize", stream)


def test_peer_access(cuda):
    can = ctypes.c_int()
    cuda.call("cuDeviceCanAccessPeer", ctypes.byref(can), 0, 1)
    assert can.value == 1
    cuda.deny_peer(denied=True)
    cuda.call("cuDeviceCanAccessPeer", ctypes.byref(can), 0, 1)
    assert can.value == 0
    cuda.call("cuCtxEnablePeerAccess", cuda.context(1), 0, expected=217)


def test_a_forked_child_has_no_driver(cuda):
    child = os.fork()
    if child == 0:
        os._exit(cuda.raw("cuInit", 0))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_functions_are_found_by_version(cuda):
    found = ctypes.c_void_p()
    name = b"cuIpcOpenMemHandle"
    arguments = ctypes.byref(found), 11000, ctypes.c_uint64(0), None
    cuda.call("cuGetProcAddress_v2", name, *arguments)
    assert found.value == ctypes.cast(cuda.library.cuIpcOpenMemHandle_v2, ctypes.c_void_p).value
    old = ctypes.byref(found), 4010, ctypes.c_uint64(0), None
    cuda.call("cuGetProcAddress_v2", name, *old, expected=500)
    cuda.call("cuGetProcAddress_v2", b"cuNothing", *arguments, expected=500)


def test_an_uncorrectable_error_stays(cuda):
    """It ends the context of that device."""
    cuda.call("cuCtxSetCurrent", cuda.context(1))
    memory, stream = cuda.allocate(SIZE, 1), cuda.stream()
    cuda.poison(memory + 100, 8)
    assert cuda.read(memory, 100) == b"\1" * 100
    cuda.copy(memory + 2048, memory, 101, stream)
    assert cuda.raw("cuStreamSynchronize", stream) == 214
    cuda.copy(memory, memory, 1, stream, expected=214)
    cuda.call("cuCtxSetCurrent", cuda.context(0))
    cuda.allocate(SIZE, 1)
