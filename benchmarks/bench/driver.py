"""Runs a contender in a process that is stopped, with its owner, during the turns of others.

The rivals' progress threads spin in both of their processes even if nothing moves, which would
distort the figures of all others.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
import traceback
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import hosts, timing, work
from bench.timing import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from multiprocessing.connection import Connection

    from bench.contender import Contender

_spawn = multiprocessing.get_context("spawn")


class Driver:
    """Makes a contender's calls, when it is asked to; asleep otherwise.

    Args:
        kind: The contender; its name is the driver's.
        size: Bytes of the buffers at both ends.
        environment: Variables of the two processes, for libraries that read them when loaded.
    """

    def __init__(
        self, kind: type[Contender], size: int, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = kind.name
        self._pipe, child_pipe = _spawn.Pipe()
        _spawn.set_executable(hosts.executable(hosts.LOCAL))
        self._process = _spawn.Process(
            target=_drive, args=(child_pipe, kind, size, environment or {})
        )
        self._process.start()
        child_pipe.close()
        try:
            self._pids = [self._process.pid, *self._receive()]
        except BaseException:
            self._process.kill()
            raise
        self._sleep()

    def call(self, action: Callable[..., Any], *arguments: object) -> Any:
        """Have it run `action(contender, *arguments)`, a function of a module, while it is awake.

        Raises:
            RuntimeError: The action failed; with its traceback.
        """
        for pid in self._pids:
            os.kill(pid, signal.SIGCONT)
        try:
            self._pipe.send((action, arguments))
            return self._receive()
        finally:
            self._sleep()

    def close(self) -> None:
        """End both processes; they are stopped, and the kernel frees what they hold."""
        for pid in reversed(self._pids):
            os.kill(pid, signal.SIGKILL)
        self._process.join()

    def _sleep(self) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGSTOP)

    def _receive(self) -> Any:
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


def _drive(
    pipe: Connection, kind: type[Contender], size: int, environment: Mapping[str, str]
) -> None:
    os.environ.update(environment)
    try:
        contender = kind(work.buffer(size))
    except Exception as error:
        pipe.send(RuntimeError(f"{kind.name}: {error}\n{traceback.format_exc()}"))
        return
    pipe.send([contender.owner.pid])
    while True:
        action, arguments = pipe.recv()
        try:
            pipe.send(action(contender, *arguments))
        except Exception as error:
            problem = f"{contender.name}: {action.__name__}: {error}\n{traceback.format_exc()}"
            pipe.send(RuntimeError(problem))


def start(
    kinds: Sequence[type[Contender]], size: int, environment: Mapping[str, str] | None = None
) -> dict[str, Driver]:
    """Start a driver for each contender, by name: all, or none."""
    drivers: dict[str, Driver] = {}
    try:
        for kind in kinds:
            drivers[kind.name] = Driver(kind, size, environment)
    except BaseException:
        for driver in drivers.values():
            driver.close()
        raise
    return drivers


def alternate(
    name: str,
    case: work.Case,
    what: str,
    drivers: Sequence[Driver],
    rounds: int,
    *,
    repeat: int = 1,
) -> list[Row]:
    """Give every driver a turn in each round, with the others stopped; return GB/s."""
    rows = {driver.name: Row(name, driver.name, "GB/s") for driver in drivers}
    for _ in range(rounds):
        for driver in drivers:
            seconds = driver.call(turn, what, case, repeat)
            rows[driver.name].values.append(case.total_bytes * repeat / seconds / 1e9)
    return list(rows.values())


# Actions.


def turn(contender: Contender, what: str, case: work.Case, repeat: int) -> float:
    """Return the seconds of `repeat` transfers, after one that wakes all threads."""
    run = partial(getattr(contender, what), case)
    run()
    begin = time.perf_counter()
    for _ in range(repeat):
        run()
    return time.perf_counter() - begin


def prepare(contender: Contender, case: work.Case) -> None:
    """Do what users do once per cache, then a read of which every byte is checked."""
    seed = case.block_bytes + len(contender.name)
    contender.owner.ask("fill", seed)  # first: an owner with a pool copies its buffer into it
    contender.prepare(case)
    contender.local[: case.total_bytes] = 0
    contender.read(case)
    if not np.array_equal(contender.local[: case.total_bytes], work.expected(case, seed)):
        raise RuntimeError(f"pull {case.name}: wrong bytes")


def prepare_write(contender: Contender, case: work.Case) -> None:
    """After `prepare`, make a write of which the owner checks every byte."""
    seed = case.block_bytes + 1
    work.fill(contender.local[: case.total_bytes], seed)
    contender.write(case)
    digest = contender.owner.ask("digest", case.total_bytes)
    if digest != work.digest(work.expected(case, seed)):
        raise RuntimeError(f"push {case.name}: wrong bytes")


def call_times(contender: Contender, count: int, percents: Sequence[float]) -> list[float]:
    """Return percentiles, in us, of pulls of one 4 KiB block."""
    one = work.Case("one 4 KiB block", 4096, 4096)
    contender.prepare(one)
    values = timing.latencies(partial(contender.read, one), count)
    return [timing.percentile(values, percent) for percent in percents]


def busy_call_times(contender: Contender, count: int, percents: Sequence[float]) -> list[float]:
    """`call_times` while the owner's interpreter spins; for owners that know the command."""
    contender.owner.ask("busy", True)
    try:
        return call_times(contender, count, percents)
    finally:
        contender.owner.ask("busy", False)


def cpu_us_per_gib(contender: Contender, case: work.Case) -> float:
    """Return CPU microseconds of both processes per GiB pulled."""
    begin = _cpu_seconds() + contender.owner.ask("cpu")
    contender.read(case)
    used = _cpu_seconds() + contender.owner.ask("cpu") - begin
    return float(used / case.total_bytes * (1 << 30) * 1e6)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
