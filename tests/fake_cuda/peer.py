"""Another process with the stand-in: opens memory of the test's process, and says what it finds."""

import ctypes
import json
import os
import signal
import sys

from support.fake_cuda import FakeCuda


def opened(cuda, handle):
    address = ctypes.c_uint64()
    raw = Handle.from_buffer_copy(bytes.fromhex(handle))
    status = cuda.raw("cuIpcOpenMemHandle_v2", ctypes.byref(address), raw, 1)
    return status, address.value


class Handle(ctypes.Structure):
    """CUipcMemHandle, which is passed by value."""

    _fields_ = (("bytes", ctypes.c_char * 64),)


def read(cuda, address, size):
    data = ctypes.create_string_buffer(size)
    status = cuda.raw("cuMemcpyDtoH_v2", data, ctypes.c_uint64(address), ctypes.c_size_t(size))
    return [status, data.raw.hex()]


def imported(cuda, pid, descriptor, size):
    """Map memory that another process has exported as a descriptor; return its address."""
    own = os.pidfd_open(pid)
    libc = ctypes.CDLL(None)
    pidfd_getfd = 438
    taken = libc.syscall(pidfd_getfd, own, descriptor, 0)
    handle, address = ctypes.c_uint64(), ctypes.c_uint64()
    cuda.call("cuMemImportFromShareableHandle", ctypes.byref(handle), ctypes.c_void_p(taken), 1)
    cuda.call("cuMemAddressReserve", ctypes.byref(address), ctypes.c_size_t(size), 0, 0, 0)
    cuda.call("cuMemMap", address, ctypes.c_size_t(size), 0, handle, 0)
    access = (ctypes.c_int * 3)(1, 0, 3)
    cuda.call("cuMemSetAccess", address, ctypes.c_size_t(size), access, ctypes.c_size_t(1))
    return address.value


def touched(address):
    """How a process ends that touches the address."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        ctypes.string_at(address, 1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main():
    cuda = FakeCuda(os.environ["LLM_DATADIST_STAND_IN_DRIVER"])
    context = ctypes.c_void_p()
    cuda.call("cuInit", 0)
    cuda.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
    cuda.call("cuCtxSetCurrent", context)
    calls = {"open": opened, "read": read, "import": imported}
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        if name == "close":
            found = cuda.raw("cuIpcCloseMemHandle", ctypes.c_uint64(*arguments))
        elif name == "touch":
            found = touched(*arguments)
        else:
            found = calls[name](cuda, *arguments)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
