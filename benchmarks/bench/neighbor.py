"""Transfers on cores that compute meanwhile, as an engine's do: what each costs the other."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import numpy as np

from bench.timing import Goal
from llm_datadist.cli.bench import hosts, processes, work
from llm_datadist.cli.bench.datadist import Datadist, DatadistTcp
from llm_datadist.cli.bench.driver import Driver, prepare, start, turn
from llm_datadist.cli.bench.rival_nixl import PACKAGE, Nixl, NixlTcp
from llm_datadist.cli.bench.timing import Row

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from llm_datadist.cli.bench.contender import Contender

_GIB = 1 << 30
_TURN_SECONDS = 2.0
_SIDE = 512  # of the matrices
_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Neighbor:
    """Pulls beside one process for each core that multiplies matrices, contenders in turns."""

    def __init__(self, rounds: int, scale: float) -> None:
        self.rounds = rounds
        self.rows: list[Row] = []
        self.goals: list[Goal] = []
        self._size = work.whole_mib(256 * work.MIB * scale)
        self._cases = [
            work.Case(name, block, self._size)
            for name, block in (("1 MiB", 1 << 20), ("32 KiB", 32768))
        ]
        self._loops: list[Loop] = []

    def run(self) -> None:
        self._loops = [Loop() for _ in os.sched_getaffinity(0)]
        for ours, rival in ((Datadist, Nixl), (DatadistTcp, NixlTcp)):
            kinds: list[type[Contender]] = [ours]
            if PACKAGE is not None:
                kinds.append(rival)
            drivers = start(kinds, self._size, {"UCX_TLS": "tcp"} if rival is NixlTcp else None)
            for case in self._cases:
                self._compare(f"{ours.name}, {case.name}", case, list(drivers.values()))
            for driver in drivers.values():
                driver.close()
            self.goals += [
                Goal(f"{ours.name}, {case.name}: {what}", ours.name, rival.name, 1.0)
                for case in self._cases
                for what in ("pull beside the loops", "taken from the loops by a GiB")
            ]

    def close(self) -> None:
        for loop in self._loops:
            loop.close()

    def _compare(self, name: str, case: work.Case, drivers: list[Driver]) -> None:
        rates = {
            each.name: Row(f"{name}: pull beside the loops", each.name, "GB/s") for each in drivers
        }
        taken = {
            each.name: Row(f"{name}: taken from the loops by a GiB", each.name, "us")
            for each in drivers
        }
        for driver in drivers:
            driver.call(prepare, case)
        for _ in range(self.rounds):
            for driver in drivers:
                alone = self._products_per_second()
                before, began = self._products(), time.perf_counter()
                done, seconds = driver.call(turn, "read", case, 1, _TURN_SECONDS)
                elapsed, products = time.perf_counter() - began, self._products() - before
                moved = case.total_bytes * done
                rates[driver.name].values.append(moved / seconds / 1e9)
                # Of the time that the loops had if nothing moved, in seconds of one core.
                lost = (elapsed - products / alone) * len(self._loops)
                taken[driver.name].values.append(lost / (moved + case.total_bytes) * _GIB * 1e6)
        self.rows += [*rates.values(), *taken.values()]

    def _products(self) -> int:
        return sum(loop.count() for loop in self._loops)

    def _products_per_second(self) -> float:
        before, began = self._products(), time.perf_counter()
        time.sleep(_TURN_SECONDS / 2)
        return (self._products() - before) / (time.perf_counter() - began)


class Loop:
    """A process that multiplies matrices without a pause, on one thread."""

    def __init__(self) -> None:
        saved = {name: os.environ.get(name) for name in _ONE_THREAD}
        os.environ.update(_ONE_THREAD)
        self._process, self._pipe = processes.start(
            hosts.executable(hosts.LOCAL), multiply, daemon=True
        )
        for name, value in saved.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        processes.receive(self._process, self._pipe)

    def count(self) -> int:
        """Return how many products it has made."""
        self._pipe.send("count")
        return int(processes.receive(self._process, self._pipe))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def multiply(pipe: Connection) -> None:
    """Body of the process; answers how many products it has made so far."""
    left = np.random.default_rng(1).random((_SIDE, _SIDE), np.float32)
    right, out, made = left.T.copy(), np.empty_like(left), 0
    pipe.send("ready")
    while True:
        np.matmul(left, right, out)
        made += 1
        if pipe.poll():
            pipe.recv()
            pipe.send(made)
