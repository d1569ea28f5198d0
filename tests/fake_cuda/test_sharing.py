"""The stand-in's memory between processes: IPC handles, and virtual memory as descriptors."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SIZE = 8192
GRANULE = 2 << 20
PEER = Path(__file__).with_name("peer.py")


class Handle(ctypes.Structure):
    """CUipcMemHandle."""

    _fields_ = (("bytes", ctypes.c_char * 64),)


class Peer:
    def __init__(self):
        environment = os.environ | {"PYTHONPATH": str(PEER.parents[1])}
        self._process = subprocess.Popen(
            [sys.executable, str(PEER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, *command):
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self):
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def peer():
    one = Peer()
    yield one
    one.close()


def handle_of(cuda, address, expected=0):
    handle = Handle()
    cuda.call(
        "cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(address), expected=expected
    )
    return bytes(handle).hex()


def test_another_process_opens_what_was_allocated(cuda, peer):
    memory = cuda.allocate(SIZE, 6)
    cuda.write(memory + 4096, b"after")
    status, opened = peer.ask("open", handle_of(cuda, memory + 100))  # always from its begin
    assert status == 0
    assert peer.ask("read", opened + 4096, 5) == [0, b"after".hex()]
    assert peer.ask("read", opened, SIZE + 1)[0] == 1
    assert peer.ask("touch", opened) == -11
    assert peer.ask("open", handle_of(cuda, memory)) == [0, opened]  # counted
    assert peer.ask("close", opened) == peer.ask("close", opened) == 0
    assert peer.ask("read", opened, 1)[0] == 1
    assert peer.ask("close", opened) == 1


def test_what_the_owner_has_freed_does_not_show_old_bytes(cuda, peer):
    memory = cuda.allocate(SIZE, 6)
    _, opened = peer.ask("open", handle_of(cuda, memory))
    cuda.free(memory)
    assert peer.ask("read", opened, 2) == [0, "dbdb"]
    peer.ask("close", opened)


def test_a_process_cannot_open_its_own(cuda):
    memory = cuda.allocate(SIZE, 6)
    raw, address = (
        Handle.from_buffer_copy(bytes.fromhex(handle_of(cuda, memory))),
        ctypes.c_uint64(),
    )
    cuda.call("cuIpcOpenMemHandle_v2", ctypes.byref(address), raw, 1, expected=201)


def test_no_ipc_as_in_containers(cuda):
    memory = cuda.allocate(SIZE, 6)
    handle = handle_of(cuda, memory)
    cuda.deny_ipc("get")
    handle_of(cuda, memory, expected=801)
    cuda.deny_ipc("open")
    raw, address = Handle.from_buffer_copy(bytes.fromhex(handle)), ctypes.c_uint64()
    cuda.call("cuIpcOpenMemHandle_v2", ctypes.byref(address), raw, 1, expected=801)


def virtual(cuda, *, exportable):
    handle, address = ctypes.c_uint64(), ctypes.c_uint64()
    properties = (ctypes.c_int * 8)(1, 1 if exportable else 0, 1, 0)
    cuda.call("cuMemCreate", ctypes.byref(handle), ctypes.c_size_t(GRANULE), properties, 0)
    cuda.call("cuMemAddressReserve", ctypes.byref(address), ctypes.c_size_t(2 * GRANULE), 0, 0, 0)
    cuda.call("cuMemMap", address, ctypes.c_size_t(GRANULE), 0, handle, 0)
    return handle, address


def test_virtual_memory(cuda):
    handle, address = virtual(cuda, exportable=False)
    cuda.read(address.value, 1, expected=700)  # mapped, and no access was set
    cuda.reset()
    second = ctypes.c_uint64()
    properties = (ctypes.c_int * 8)(1, 0, 1, 0)
    cuda.call("cuMemCreate", ctypes.byref(second), ctypes.c_size_t(GRANULE), properties, 0)
    behind = ctypes.c_uint64(address.value + GRANULE)
    cuda.call("cuMemMap", behind, ctypes.c_size_t(GRANULE), 0, second, 0)
    access = (ctypes.c_int * 3)(1, 0, 3)
    cuda.call("cuMemSetAccess", address, ctypes.c_size_t(2 * GRANULE), access, ctypes.c_size_t(1))
    cuda.write(address.value + GRANULE - 2, b"over")  # mappings of one reservation adjoin
    assert cuda.read(address.value + GRANULE - 2, 4) == b"over"
    cuda.call("cuIpcGetMemHandle", ctypes.byref(Handle()), address, expected=1)
    cuda.call(
        "cuMemExportToShareableHandle", ctypes.byref(ctypes.c_int()), handle, 1, 0, expected=1
    )
    cuda.call("cuMemAddressFree", address, ctypes.c_size_t(2 * GRANULE), expected=1)  # still mapped
    for each, mapped in ((handle, address), (second, behind)):
        cuda.call("cuMemRelease", each)
        cuda.call("cuMemUnmap", mapped, ctypes.c_size_t(GRANULE))
    cuda.call("cuMemAddressFree", address, ctypes.c_size_t(2 * GRANULE))


def test_virtual_memory_passes_as_a_descriptor(cuda, peer):
    handle, address = virtual(cuda, exportable=True)
    access = (ctypes.c_int * 3)(1, 0, 3)
    cuda.call("cuMemSetAccess", address, ctypes.c_size_t(GRANULE), access, ctypes.c_size_t(1))
    cuda.write(address.value, b"shared")
    descriptor = ctypes.c_int()
    cuda.call("cuMemExportToShareableHandle", ctypes.byref(descriptor), handle, 1, 0)
    mapped = peer.ask("import", os.getpid(), descriptor.value, GRANULE)
    assert peer.ask("read", mapped, 6) == [0, b"shared".hex()]
    os.close(descriptor.value)
    unmap(cuda, handle, address)


def test_access_is_of_each_device(cuda):
    """And a mapping that is to be read only is not written."""
    handle, address = virtual(cuda, exportable=False)
    access = (ctypes.c_int * 3)(1, 0, 1)
    cuda.call("cuMemSetAccess", address, ctypes.c_size_t(GRANULE), access, ctypes.c_size_t(1))
    assert cuda.read(address.value, 1) == b"\0"
    cuda.write(address.value, b"no", expected=700)
    cuda.reset()
    cuda.call("cuCtxSetCurrent", cuda.context(1))
    cuda.read(address.value, 1, expected=700)
    cuda.reset()
    unmap(cuda, handle, address)


def test_handles_are_released_once(cuda):
    handle, address = virtual(cuda, exportable=False)
    cuda.call("cuMemRelease", handle)
    cuda.call("cuMemRelease", handle, expected=1)
    begin = ctypes.c_uint64(address.value + GRANULE)
    cuda.call("cuMemMap", begin, ctypes.c_size_t(GRANULE), 0, handle, 0, expected=1)
    cuda.call("cuMemUnmap", address, ctypes.c_size_t(GRANULE))
    cuda.call("cuMemAddressFree", address, ctypes.c_size_t(2 * GRANULE))
    assert cuda.num_virtual() == 0


def test_only_its_own_memory_can_be_imported(cuda):
    handle = ctypes.c_uint64()
    foreign = os.memfd_create("foreign")
    os.truncate(foreign, GRANULE)
    descriptor = ctypes.c_void_p(foreign)
    cuda.call("cuMemImportFromShareableHandle", ctypes.byref(handle), descriptor, 1, expected=1)
    os.close(foreign)


def test_a_device_has_so_much_memory(cuda):
    free, total, before = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_size_t()
    handle, size = ctypes.c_uint64(), ctypes.c_size_t(2 * GRANULE)
    properties = (ctypes.c_int * 8)(1, 0, 1, 0)
    cuda.limit_memory(size.value)
    cuda.call("cuMemGetInfo_v2", ctypes.byref(before), ctypes.byref(total))
    cuda.allocate(4096)  # of which less than the whole is left now
    cuda.call("cuMemCreate", ctypes.byref(handle), size, properties, 0, expected=2)
    cuda.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    assert (before.value - free.value, total.value) == (4096, size.value)


def test_cards_without_virtual_memory(cuda):
    cuda.deny_virtual(denied=True)
    has = ctypes.c_int()
    cuda.call("cuDeviceGetAttribute", ctypes.byref(has), 102, 0)
    assert has.value == 0
    properties = (ctypes.c_int * 8)(1, 0, 1, 0)
    size = ctypes.c_size_t(GRANULE)
    cuda.call("cuMemCreate", ctypes.byref(ctypes.c_uint64()), size, properties, 0, expected=801)


def unmap(cuda, handle, address):
    cuda.call("cuMemRelease", handle)
    cuda.call("cuMemUnmap", address, ctypes.c_size_t(GRANULE))
    cuda.call("cuMemAddressFree", address, ctypes.c_size_t(2 * GRANULE))
