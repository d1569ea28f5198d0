"""Limits of the machine: process_vm_readv and memcpy from shared memory on threads, and iperf3."""

from __future__ import annotations

import ctypes
import itertools
import json
import mmap
import os
import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llm_datadist.cli.bench import hosts, work
from llm_datadist.cli.bench.contender import Contender, serve

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from numpy.typing import NDArray

    from llm_datadist.cli.bench.work import Case, Memory

__all__ = ["IPERF", "BareReadv", "BigMemcpy", "iperf3", "shares", "threads"]

IPERF = "iperf3 -P 2"

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
_IPERF_TRIES = 30
_IPERF_SPARE_S = 10.0


def threads() -> int:
    """Return the number of threads that the library uses at most."""
    return min(len(os.sched_getaffinity(0)), 8)


def _owner(pipe: Connection, memory: Memory) -> None:
    pipe.send({"pid": os.getpid(), "address": work.address(memory)})
    serve(pipe, memory)


class BareReadv(Contender):
    """process_vm_readv, at most 1,024 iovecs a call, iovecs prepared beforehand."""

    name = "bare process_vm_readv"

    def __init__(self, local: Memory) -> None:
        super().__init__(local)
        self._pool = ThreadPoolExecutor(threads())
        self._iovecs: tuple[NDArray[np.uint64], NDArray[np.uint64]] | None = None

    @staticmethod
    def owner_body() -> Callable[[Connection, Memory], None]:
        """Return the body of an owner whose memory others read."""
        return _owner

    def prepare(self, case: Case) -> None:
        """Make the iovecs."""
        src, dst = case.blocks()
        self._iovecs = (
            _rows(case.addresses(work.address(self.local), dst), case.block_bytes),
            _rows(case.addresses(self.owner.hello["address"], src), case.block_bytes),
        )

    def read(self, case: Case) -> None:
        """Read the case that was prepared."""
        assert self._iovecs is not None
        local, remote = self._iovecs
        parts = shares(case.pieces, threads())
        jobs = [self._pool.submit(self._run, local, remote, part) for part in parts]
        if sum(job.result() for job in jobs) != case.total_bytes:
            raise RuntimeError("process_vm_readv read too little: the process may not be read")

    def _run(
        self,
        local: NDArray[np.uint64],
        remote: NDArray[np.uint64],
        ranges: list[tuple[int, int]],
    ) -> int:
        pid, moved = self.owner.hello["pid"], 0
        for first, end in ranges:
            dst, src = local[first:end], remote[first:end]
            moved += _readv(pid, dst.ctypes.data, len(dst), src.ctypes.data, len(src), 0)
        return moved


def shares(pieces: int, num_threads: int) -> list[list[tuple[int, int]]]:
    """Return the calls of each thread: first and end of the pieces of a call, at most 1,024.

    Few large pieces are dealt to all threads, too.
    """
    num_calls = max(num_threads, -(-pieces // _IOVECS))
    bounds = [pieces * index // num_calls for index in range(num_calls + 1)]
    calls = list(itertools.pairwise(bounds))
    return [calls[index::num_threads] for index in range(num_threads)]


def _rows(addresses: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    rows = np.empty((len(addresses), 2), np.uint64)
    rows[:, 0] = addresses
    rows[:, 1] = size
    return rows


class BigMemcpy(Contender):
    """memcpy of one piece per thread from a shared mapping into private memory."""

    name = "two-thread memcpy"

    def __init__(self, local: Memory) -> None:
        super().__init__(local)
        segment = Path(f"/proc/{self.owner.pid}/fd/{self.owner.hello['fd']}")
        with segment.open("r+b") as shared:
            self._source = np.frombuffer(mmap.mmap(shared.fileno(), len(local)), np.uint8)
        self._pool = ThreadPoolExecutor(threads())

    @staticmethod
    def owner_body() -> Callable[[Connection, Memory], None]:
        """Return the body of an owner whose buffer others map."""
        return _owner_shared

    def prepare(self, case: Case) -> None:
        """Do nothing: it copies in order in every case."""

    def read(self, case: Case) -> None:
        """Copy as many bytes as the case has."""
        self.copy(case.total_bytes)

    def copy(self, total: int) -> None:
        """Copy this many bytes."""
        step = total // threads()
        jobs = [
            self._pool.submit(np.copyto, self.local[at : at + step], self._source[at : at + step])
            for at in range(0, step * threads(), step)
        ]
        for job in jobs:
            job.result()


def _owner_shared(pipe: Connection, memory: Memory) -> None:
    """Body of an owner whose buffer others can map."""
    fd = os.memfd_create("bench")
    os.ftruncate(fd, len(memory))
    shared = np.frombuffer(mmap.mmap(fd, len(memory)), np.uint8)
    shared[:: mmap.PAGESIZE] = 1
    pipe.send({"fd": fd})
    serve(pipe, shared)


def iperf3(seconds: float = 2.0) -> float:
    """GB/s of two plain streams of the program iperf3 between the hosts of the two ends.

    Raises:
        RuntimeError: It is not installed, failed, or did not end.
    """
    if shutil.which("iperf3") is None:
        raise RuntimeError("iperf3 is not installed (Debian: apt install iperf3)")
    ip, port = hosts.address(hosts.OWNER), _free_port()
    server = subprocess.Popen(
        [*hosts.prefix(hosts.OWNER), "iperf3", "-s", "-1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    whole_s = max(1, round(seconds))
    client = f"iperf3 -c {ip} -p {port} -P 2 -J -t {whole_s}"
    try:
        for _ in range(_IPERF_TRIES):  # until the server listens
            time.sleep(0.1)
            done = subprocess.run(
                [*hosts.prefix(hosts.LOCAL), *client.split()],
                capture_output=True,
                check=False,
                text=True,
                timeout=whole_s + _IPERF_SPARE_S,
            )
            if done.returncode == 0:
                break
        else:
            raise RuntimeError(f"{client}: {done.stdout.strip()[-200:]}")
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{client}: it did not end within {error.timeout:.0f} s") from None
    finally:
        server.kill()
        server.wait()
    return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"] / 8e9)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
