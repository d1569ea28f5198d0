"""Limits of the machine: process_vm_readv, and memcpy from shared memory, on two threads."""

from __future__ import annotations

import ctypes
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import work
from bench.contender import Contender, serve

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_libc = ctypes.CDLL(None, use_errno=True)
_readv = _libc.process_vm_readv
_readv.restype = ctypes.c_ssize_t
_readv.argtypes = [
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_ulong,
]
_IOVECS = 1024


def threads() -> int:
    return min(len(os.sched_getaffinity(0)), 8)


def owner(pipe: Connection, memory: np.ndarray) -> None:
    pipe.send({"pid": os.getpid(), "address": work.address(memory)})
    serve(pipe, memory)


class BareReadv(Contender):
    """process_vm_readv, 1,024 iovecs a call, iovecs prepared beforehand."""

    name = "bare process_vm_readv"

    def __init__(self, local: np.ndarray) -> None:
        super().__init__(local)
        self._pool = ThreadPoolExecutor(threads())
        self._iovecs: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @staticmethod
    def owner_body() -> Any:
        return owner

    def prepare(self, case: work.Case) -> None:
        src, dst = case.blocks()
        self._iovecs[case.name] = (
            _rows(work.address(self.local), dst, case.block_bytes),
            _rows(self.owner.hello["address"], src, case.block_bytes),
        )

    def read(self, case: work.Case) -> None:
        local, remote = self._iovecs[case.name]
        starts = list(range(0, case.count, _IOVECS))
        parts = [starts[index :: threads()] for index in range(threads())]
        jobs = [self._pool.submit(self._run, local, remote, part) for part in parts]
        if sum(job.result() for job in jobs) != case.total_bytes:
            raise RuntimeError("short read")

    def _run(self, local: np.ndarray, remote: np.ndarray, starts: list[int]) -> int:
        pid, moved = self.owner.hello["pid"], 0
        for start in starts:
            dst, src = local[start : start + _IOVECS], remote[start : start + _IOVECS]
            moved += _readv(pid, dst.ctypes.data, len(dst), src.ctypes.data, len(src), 0)
        return moved


def _rows(base: int, blocks: np.ndarray, size: int) -> np.ndarray:
    rows = np.empty((len(blocks), 2), np.uint64)
    rows[:, 0] = blocks.astype(np.uint64) * np.uint64(size) + np.uint64(base)
    rows[:, 1] = size
    return rows


class BigMemcpy(Contender):
    """memcpy of one piece per thread from a shared mapping into private memory."""

    name = "two-thread memcpy"

    def __init__(self, local: np.ndarray) -> None:
        super().__init__(local)
        segment = Path(f"/proc/{self.owner.pid}/fd/{self.owner.hello['fd']}")
        with segment.open("r+b") as shared:
            self._source = np.frombuffer(mmap.mmap(shared.fileno(), len(local)), np.uint8)
        self._pool = ThreadPoolExecutor(threads())

    @staticmethod
    def owner_body() -> Any:
        return owner_shared

    def prepare(self, case: work.Case) -> None:
        """Do nothing: it copies in order in every case."""

    def read(self, case: work.Case) -> None:
        self.copy(case.total_bytes)

    def copy(self, total: int) -> None:
        step = total // threads()
        jobs = [
            self._pool.submit(np.copyto, self.local[at : at + step], self._source[at : at + step])
            for at in range(0, step * threads(), step)
        ]
        for job in jobs:
            job.result()


def owner_shared(pipe: Connection, memory: np.ndarray) -> None:
    """Body of an owner whose buffer others can map."""
    fd = os.memfd_create("bench")
    os.ftruncate(fd, len(memory))
    shared = np.frombuffer(mmap.mmap(fd, len(memory)), np.uint8)
    shared[:: mmap.PAGESIZE] = 1
    pipe.send({"fd": fd})
    serve(pipe, shared)
