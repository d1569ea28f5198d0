"""Program that asks the driver of NVIDIA GPUs for its devices, and shares memory of each.

Needs the standard library only. Runs in a process of its own, so that `doctor` has no driver
loaded. Prints JSON: version of the driver, names of the GPUs, and for each the first call that
failed. `gpu_probe.py open DEVICE HANDLE` is the second process, which maps the memory.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from typing import Any

_HANDLE_BYTES = 64
_SIZE = 1 << 20
_LAZY_PEER_ACCESS = 1
_SECONDS = 30
_NO_DEVICE = 100
_NAME_BYTES = 128


class _Handle(ctypes.Structure):
    _fields_ = (("data", ctypes.c_char * _HANDLE_BYTES),)


class _CallError(Exception):
    """A function of the driver has failed.

    Args:
        text: The function and what it returned.
        status: The number.
    """

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class _Driver:
    """The driver's functions; one that fails raises _CallError."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")

    def call(self, name: str, *arguments: Any) -> None:  # noqa: ANN401 - any C argument
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            raise _CallError(f"{name} returns {status}{self._meaning(status)}", status)

    def _meaning(self, status: int) -> str:
        text = ctypes.c_char_p()
        self._library.cuGetErrorName(status, ctypes.byref(text))
        return f" ({text.value.decode()})" if text.value else ""

    def number(self, name: str) -> int:
        value = ctypes.c_int()
        self.call(name, ctypes.byref(value))
        return value.value

    def use(self, device: int) -> None:
        """Make the primary context of a GPU current, for the life of this process."""
        context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxPushCurrent_v2", context)

    def name_of(self, device: int) -> str:
        text = ctypes.create_string_buffer(_NAME_BYTES)
        try:
            self.call("cuDeviceGetName", text, _NAME_BYTES, device)
        except AttributeError:  # not of every driver
            return f"GPU {device}"
        return text.value.decode(errors="replace")


def _shared(driver: _Driver, device: int) -> str:
    """Allocate memory, and let another process map it; return "" or what failed."""
    address, handle = ctypes.c_uint64(), _Handle()
    try:
        driver.use(device)
        driver.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(_SIZE))
        driver.call("cuIpcGetMemHandle", ctypes.byref(handle), address)
    except _CallError as error:
        return str(error)
    done = subprocess.run(
        [sys.executable, "-I", "-S", __file__, "open", str(device), bytes(handle).hex()],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    lines = done.stdout.splitlines()
    return str(json.loads(lines[-1])) if lines else f"the second process ended: {done.returncode}"


def _open(device: int, data: bytes) -> str:
    """Map the memory of another process; return "" or what failed."""
    address, handle = ctypes.c_uint64(), _Handle.from_buffer_copy(data)
    try:
        driver = _Driver()
        driver.call("cuInit", 0)
        driver.use(device)
        driver.call(
            "cuIpcOpenMemHandle_v2", ctypes.byref(address), handle, ctypes.c_uint(_LAZY_PEER_ACCESS)
        )
        driver.call("cuIpcCloseMemHandle", address)
    except _CallError as error:
        return str(error)
    return ""


def _count(driver: _Driver) -> int:
    """Start the driver; return the number of GPUs that this process sees."""
    try:
        driver.call("cuInit", 0)
    except _CallError as error:
        if error.status != _NO_DEVICE:
            raise
        return 0
    return driver.number("cuDeviceGetCount")


def _found() -> dict[str, object]:
    try:
        driver = _Driver()
        version = driver.number("cuDriverGetVersion")
        count = _count(driver)
    except OSError as error:
        return {"missing": str(error)}
    except (AttributeError, _CallError) as error:
        return {"problem": str(error)}
    names = [driver.name_of(device) for device in range(count)]
    return {
        "version": f"{version // 1000}.{version % 1000 // 10}",
        "names": names,
        "shared": [_shared(driver, device) for device in range(count)],
    }


def main() -> None:
    """See the module."""
    if sys.argv[1:2] == ["open"]:
        found: object = _open(int(sys.argv[2]), bytes.fromhex(sys.argv[3]))
    else:
        found = _found()
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
