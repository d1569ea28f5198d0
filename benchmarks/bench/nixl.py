"""Our pull through NIXL beside bare NIXL doing the same work its usual way, over one transport."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import timing, work
from bench.ours import OWNER_ID, Ours, owner, register
from bench.rival_nixl import Nixl
from bench.timing import Goal, Row

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

OURS, BARE = "llm-datadist (nixl)", "bare NIXL"
TRANSPORTS = {"tcp": "tcp", "shm": "shm,cma,self,tcp"}
_TENSORS = 122


class Consecutive(work.Case):
    """All blocks in order: neighbours on both sides."""

    def blocks(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.arange(self.count)
        return order, order.copy()


def owner_nixl(pipe: Connection, memory: np.ndarray) -> None:
    owner(pipe, memory, backend="nixl", pool=False)


class OursNixl(Ours):
    """Forced onto NIXL."""

    name = OURS
    backend = "nixl"
    _made: Any = None

    @staticmethod
    def owner_body() -> Any:
        return owner_nixl

    def connect(self, total: int) -> None:
        from llm_datadist import LLMStatusCode  # noqa: PLC0415

        usable = total // _TENSORS // 4096 * 4096 * _TENSORS
        self._made = register(
            self.instance, work.address(self.local), usable, 4096, _TENSORS, key=False
        )
        status, _ = self.instance.link_clusters([self._owner_info()], 10_000)
        if status != LLMStatusCode.LLM_SUCCESS:
            raise RuntimeError("cannot link again")

    def disconnect(self) -> None:
        self.instance.unlink_clusters([self._owner_info()])
        if self._made is not None:
            self.instance.cache_manager.unregister_cache(self._made.cache_id)

    def _owner_info(self) -> Any:
        from llm_datadist import LLMClusterInfo  # noqa: PLC0415

        info = LLMClusterInfo()
        info.remote_cluster_id = OWNER_ID
        info.append_local_ip_info("127.0.0.1", 0)
        info.append_remote_ip_info(*self.owner.hello["address"])
        return info


class BareNixl(Nixl):
    """As `bench.rival_nixl`, whatever transport the environment says."""

    name = BARE

    _registered: Any = None

    def connect(self, total: int) -> None:
        each = total // _TENSORS // 4096 * 4096
        first = work.address(self.local)
        rows = [(first + index * each, each, 0, "") for index in range(_TENSORS)]
        self._registered = self._agent.register_memory(rows, "DRAM")
        self._remote = self._agent.add_remote_agent(self.owner.hello["metadata"])
        self._agent.make_connection(self._remote)

    def disconnect(self) -> None:
        if self._registered is not None:
            self._agent.deregister_memory(self._registered)
        self._agent.remove_remote_agent(self._remote)


class Driver:
    """A contender in a process of its own, which sleeps, its owner too, while the other one runs.

    NIXL's Python class has a progress thread that spins in both processes, also when nothing moves:
    beside it nobody else's figures would mean anything.
    """

    def __init__(self, kind: type[OursNixl | BareNixl], size: int) -> None:
        self.name = kind.name
        spawn = multiprocessing.get_context("spawn")
        self._pipe, there = spawn.Pipe()
        self._process = spawn.Process(target=_drive, args=(there, kind, size))
        self._process.start()
        self._pids = [self._process.pid, *self._pipe.recv()]
        self.sleep()

    def sleep(self) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGSTOP)

    def wake(self) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGCONT)

    def ask(self, name: str, *arguments: object) -> Any:
        """Have it do something, awake; return (microseconds, result)."""
        self.wake()
        self._pipe.send((name, arguments))
        answer = self._pipe.recv()
        self.sleep()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        for pid in reversed(self._pids):
            os.kill(pid, signal.SIGKILL)
        self._process.join()


def _drive(pipe: Connection, kind: type[OursNixl | BareNixl], size: int) -> None:
    contender = kind(work.buffer(size))
    pipe.send([contender.owner.pid])
    while True:
        name, arguments = pipe.recv()
        begin = time.perf_counter_ns()
        try:
            result = globals()[name](contender, *arguments)
        except Exception as error:
            pipe.send(RuntimeError(f"{contender.name}: {name}: {error}"))
            continue
        elapsed_us = (time.perf_counter_ns() - begin) / 1e3
        pipe.send((elapsed_us if result is None else result, None))


# What a driver does for the comparison; each takes the contender, and may return its own figure.


def prepare(contender: OursNixl | BareNixl, case: work.Case) -> None:
    """Get ready, and check that a pull brings every byte."""
    contender.prepare(case)
    contender.owner.ask("fill", 5)
    contender.local[:] = 0
    contender.read(case)
    source = np.empty(case.total_bytes, np.uint8)
    work.fill(source, 5)
    src, dst = case.blocks()
    shape = (case.count, case.block_bytes)
    if not (contender.local.reshape(shape)[dst] == source.reshape(shape)[src]).all():
        raise RuntimeError("wrong bytes")


def read(contender: OursNixl | BareNixl, case: work.Case) -> None:
    contender.read(case)


def write(contender: OursNixl | BareNixl, case: work.Case) -> None:
    contender.write(case)


def small(contender: OursNixl | BareNixl) -> float:
    """p50 of one block, in us."""
    one = work.Case("one 4 KiB block", 4096, 4096)
    contender.prepare(one)
    return timing.percentile(timing.latencies(partial(contender.read, one), 1000), 50)


def set_up(contender: OursNixl | BareNixl) -> float:
    """Register 122 tensors and connect, where processes and agents are there already; in us."""
    total = len(contender.local)
    contender.disconnect()
    begin = time.perf_counter_ns()
    contender.connect(total)
    return (time.perf_counter_ns() - begin) / 1e3


def described(contender: OursNixl) -> Any:
    print(contender.describe()["channel"])
    return 0.0


class NixlComparison:
    """The comparison; one of the two is awake at a time."""

    def __init__(self, rounds: int, scale: float, transport: str) -> None:
        self.rounds = max(rounds, 5)
        self.rows: list[Row] = []
        self.goals: list[Goal] = []
        os.environ["UCX_TLS"] = TRANSPORTS[transport]  # for the processes that are started now
        self._total = work.whole_mib(512 * work.MIB * scale)
        self._drivers = [Driver(OursNixl, self._total), Driver(BareNixl, self._total)]

    def close(self) -> None:
        for driver in self._drivers:
            driver.close()

    def run(self) -> None:
        total = self._total
        for case, wanted in (
            (work.Case("pull 32 KiB, random", 32 << 10, total), 1.0),
            (work.Case("pull 4 KiB, random", 4 << 10, total), 1.2),
            (Consecutive("pull 32 KiB, in order", 32 << 10, total, seed=8), 1.5),
        ):
            self._compare(case, "read", wanted)
        self._compare(work.Case("push 32 KiB, random", 32 << 10, total), "write", None)
        self._times("one 4 KiB block, p50", "small", 1 / 1.5)
        self._times(f"register {_TENSORS} tensors and link", "set_up", 1 / 1.2)
        self._drivers[0].ask("described")

    def _compare(self, case: work.Case, what: str, wanted: float | None) -> None:
        rows = {driver.name: Row(case.name, driver.name, "GB/s") for driver in self._drivers}
        for driver in self._drivers:
            driver.ask("prepare", case)
        for _ in range(self.rounds):
            for driver in self._drivers:
                elapsed_us, _ = driver.ask(what, case)
                rows[driver.name].values.append(case.total_bytes / elapsed_us / 1e3)
        self.rows += rows.values()
        if wanted is not None:
            self.goals.append(Goal(case.name, OURS, BARE, wanted))

    def _times(self, name: str, what: str, wanted: float) -> None:
        rows = {driver.name: Row(name, driver.name, "us") for driver in self._drivers}
        for _ in range(self.rounds):
            for driver in self._drivers:
                rows[driver.name].values.append(driver.ask(what)[0])
        self.rows += rows.values()
        self.goals.append(Goal(name, OURS, BARE, wanted))
