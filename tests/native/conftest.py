"""Memory, nodes and peer processes for tests of the native core itself."""

from __future__ import annotations

import ctypes
import itertools
import json
import mmap
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llm_datadist import _native

PEER_PROGRAM = Path(__file__).with_name("peer_process.py")
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PROT_NONE, PROT_READ, PROT_WRITE = 0, 1, 2
# Far from where the kernel places mappings by itself: a hole that a test makes there stays one;
# elsewhere the next mapping of any thread may fill it.
FAR_AWAY = itertools.count(0x2000_0000_0000, 1 << 32)


def u64(*values):
    return np.array(values, dtype=np.uint64)


def soon(seconds=20.0):
    """A deadline that a working test never reaches."""
    return time.monotonic_ns() + int(seconds * 1e9)


class Pages:
    """Anonymous memory that a test may unmap and protect page by page."""

    page = mmap.PAGESIZE

    def __init__(self, count):
        self.count = count
        self.size = count * self.page
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.address = LIBC.mmap(next(FAR_AWAY), self.size, PROT_READ | PROT_WRITE, flags, -1, 0)
        self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * self.size).from_address(self.address))

    def at(self, page):
        return self.address + page * self.page

    def unmap(self, page, count=1):
        assert LIBC.munmap(self.at(page), count * self.page) == 0

    def protect(self, page, protection, count=1):
        assert LIBC.mprotect(self.at(page), count * self.page, protection) == 0

    def close(self):
        LIBC.munmap(self.address, self.size)


@pytest.fixture
def pages():
    made = []

    def make(count):
        made.append(Pages(count))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def node():
    made = _native.Node(random.getrandbits(63), 1024, 1 << 16)
    yield made
    made.close()


def shown_proof(node):
    """Open the guard of a link, and show a proof beside it: (index of the guard, proof)."""
    link = node.open_guard()
    proof = os.urandom(16)
    node.show_proof(link, proof)
    return link[0], proof


def peer_of(own, other):
    """`own`'s view of `other`, an instance of this very process."""
    return _native.HostPeer(
        own,
        os.getpid(),
        other.incarnation,
        other.page_address,
        other.published_fd,
        other.published_bytes,
        *shown_proof(other),
    )


class PeerProcess:
    """Another process: an instance, an entry over `pages` pages, a pool segment as large."""

    def __init__(self, pages):
        self.process = subprocess.Popen(
            [sys.executable, str(PEER_PROGRAM), str(pages)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        told = json.loads(self.process.stdout.readline())
        self.__dict__.update(told)
        self.entry = tuple(told["entry"])
        self.segment_entry = tuple(told["segment_entry"])

    def ask(self, *command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def seen_from(self, node):
        return _native.HostPeer(
            node,
            self.process.pid,
            self.incarnation,
            self.page_address,
            self.published_fd,
            self.published_bytes,
            self.link[0],
            bytes(self.proof),
        )

    def close(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def peer_process():
    made = []

    def start(pages=64):
        made.append(PeerProcess(pages))
        return made[-1]

    yield start
    for each in made:
        each.close()


@pytest.fixture
def two_threads():
    before = _native.threads()
    _native.set_threads(2)
    yield
    _native.set_threads(before)


class Tools:
    """What tests need besides fixtures, reached as one so that no test imports another file."""

    u64 = staticmethod(u64)
    soon = staticmethod(soon)
    peer_of = staticmethod(peer_of)
    PROT_NONE, PROT_READ, PROT_WRITE = PROT_NONE, PROT_READ, PROT_WRITE


@pytest.fixture
def tools():
    return Tools
