"""Builds the library that stands in for libcuda.so.1 (tests/fake_cuda), once for its sources."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SOURCES = TESTS / "fake_cuda"
BUILT = TESTS.parent / "build" / "fake_cuda"
COPIES = ("cuMemcpyAsync", "cuMemcpyBatchAsync", "cuLaunchKernel")
FLAGS = ("-std=c++20", "-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")


def build():
    """Return the path of the library; compile it if its sources have changed."""
    files = sorted([*SOURCES.glob("*.cc"), *SOURCES.glob("*.h")])
    digest = hashlib.sha256(b"".join(each.read_bytes() for each in files)).hexdigest()[:16]
    library = BUILT / digest / "libcuda.so.1"
    library.parent.mkdir(parents=True, exist_ok=True)
    with (library.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            part = library.with_suffix(".part")
            sources = [str(each) for each in files if each.suffix == ".cc"]
            subprocess.run(["g++", *FLAGS, "-o", str(part), *sources, "-ldl"], check=True)
            part.rename(library)
    return library


def run_tests(paths, timeout, **environment):
    """Run tests in a process whose driver is the stand-in; return (passed or not, output)."""
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *paths]
    return run(command, timeout, **environment)


def run(command, timeout, **environment):
    """Run a Python program whose driver is the stand-in; return (status 0 or not, output)."""
    library = build()
    path = f"{library.parent}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    found = {"LD_LIBRARY_PATH": path, "LLM_DATADIST_STAND_IN_DRIVER": str(library)}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=TESTS.parent,
        env=os.environ | found | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return done.returncode == 0, done.stdout + done.stderr


class FakeCuda:
    """The stand-in in this process: its driver functions, and those that make it fail.

    `call` raises AssertionError unless the function returns `expected`.
    """

    def __init__(self, path):
        self.library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)

    def raw(self, name, *arguments):
        return getattr(self.library, name)(*arguments)

    def call(self, name, *arguments, expected=0):
        status = self.raw(name, *arguments)
        assert status == expected, f"{name}: {status}"

    def fail(self, text):
        self.raw("fake_cuda_fail", text.encode())

    def fail_copies(self, result):
        """Let every copy fail, whatever makes it."""
        self.fail(",".join(f"{name}:*:{result}" for name in COPIES))

    def block_copies(self):
        """Let the next copy not return, whatever makes it."""
        self.block(",".join(f"{name}:1" for name in COPIES))

    def count_copies(self):
        """Return how many calls have made copies, whatever makes them."""
        return sum(map(self.calls, COPIES))

    def block(self, text):
        self.raw("fake_cuda_block", text.encode())

    def unblock(self):
        self.raw("fake_cuda_unblock")

    def delay(self, microseconds):
        self.raw("fake_cuda_delay", ctypes.c_uint64(microseconds))

    def hang(self, device, *, hangs):
        self.raw("fake_cuda_hang", device, int(hangs))

    def poison(self, address, size):
        self.raw("fake_cuda_poison", ctypes.c_uint64(address), ctypes.c_size_t(size))

    def deny_ipc(self, side):
        self.raw("fake_cuda_deny_ipc", side.encode())

    def deny_peer(self, *, denied):
        self.raw("fake_cuda_deny_peer", int(denied))

    def deny_virtual(self, *, denied):
        self.raw("fake_cuda_deny_virtual", int(denied))

    def limit_memory(self, size):
        """Bytes of each device; 0 = as at the start."""
        self.raw("fake_cuda_memory", ctypes.c_size_t(size))

    def num_virtual(self):
        """Reservations, and handles of virtual memory, that have not ended."""
        self.library.fake_cuda_virtual.restype = ctypes.c_size_t
        return self.library.fake_cuda_virtual()

    def num_writable_imports(self):
        """Mappings of another process's virtual memory that a device may write."""
        self.library.fake_cuda_writable_imports.restype = ctypes.c_size_t
        return self.library.fake_cuda_writable_imports()

    def num_registered(self):
        """Ranges of host memory that are registered."""
        self.library.fake_cuda_registered.restype = ctypes.c_size_t
        return self.library.fake_cuda_registered()

    def calls(self, function):
        self.library.fake_cuda_calls.restype = ctypes.c_uint64
        return self.library.fake_cuda_calls(function.encode())

    def copied_bytes(self):
        self.library.fake_cuda_copied_bytes.restype = ctypes.c_uint64
        return self.library.fake_cuda_copied_bytes()

    def reset(self):
        """Undo every failure, also an error that a context has kept."""
        self.unblock()
        self.fail("")
        self.delay(0)
        self.poison(0, 0)
        self.deny_ipc("")
        self.deny_peer(denied=False)
        self.deny_virtual(denied=False)
        self.limit_memory(0)
        for device in range(2):
            self.hang(device, hangs=False)
        self.raw("fake_cuda_revive")


def needs_fake(path):
    """Skip a test where the driver is not the stand-in."""
    if not path:
        pytest.skip("only the driver that stands in can do that")
