"""Runs a contender in a process that is stopped, with its owner, during the turns of others.

The rivals' progress threads spin in both of their processes even if nothing moves, which would
distort the figures of all others.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from llm_datadist.cli.bench import hosts, processes, timing
from llm_datadist.cli.bench.work import Case, buffer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from multiprocessing.connection import Connection

    from llm_datadist.cli.bench.contender import Contender

__all__ = [
    "Driver",
    "call_times",
    "facts_of_link",
    "leave",
    "prepare",
    "prepare_write",
    "start",
    "turn",
]


class Driver:
    """Makes a contender's calls, when it is asked to; asleep otherwise.

    Args:
        kind: The contender; its name is the driver's.
        size: Bytes of the buffers at both ends.
        environment: Variables of the two processes, for libraries that read them when loaded.
        wait: Whether to wait until the contender is made; if not, `wait_until_ready` must be called
            before `call`.

    Raises:
        RuntimeError: The contender cannot be made.
    """

    def __init__(
        self,
        kind: type[Contender],
        size: int,
        environment: Mapping[str, str] | None = None,
        *,
        wait: bool = True,
    ) -> None:
        self.name: str = kind.name
        self._process, self._pipe = processes.start(
            hosts.executable(hosts.LOCAL), _drive, kind, size, environment or {}
        )
        self._pids: list[int] = [int(self._process.pid or 0)]
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until the contender is made, and let it sleep.

        Raises:
            RuntimeError: It cannot be made. Its processes have ended.
        """
        try:
            self._pids += self._receive(None)
        except BaseException:
            self.close()  # its owner dies with it
            raise
        self._signal(signal.SIGSTOP)

    def call(
        self, action: Callable[..., Any], *arguments: object, seconds: float | None = None
    ) -> Any:  # noqa: ANN401 - of an action
        """Have it run `action(contender, *arguments)`, a function of a module, while it is awake.

        Raises:
            RuntimeError: The action failed, with its traceback; the process has ended; or it did
                not answer within `seconds`, after which only `close` may be called.
        """
        self._signal(signal.SIGCONT)
        try:
            self._pipe.send((action, arguments))
            return self._receive(seconds)
        except OSError:
            raise RuntimeError(f"{self.name}: its process has ended") from None
        finally:
            self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """End both processes; they are stopped, and the kernel frees what they hold."""
        self._signal(signal.SIGKILL)
        self._pids.clear()  # the numbers may be those of others from now on
        self._process.join()
        self._pipe.close()

    def _signal(self, number: signal.Signals) -> None:
        for pid in reversed(self._pids):  # its owner first: it may be a child that is gone with it
            with suppress(ProcessLookupError):  # `call` finds out by its pipe
                os.kill(pid, number)

    def _receive(self, seconds: float | None) -> Any:  # noqa: ANN401 - of an action
        return processes.receive(self._process, self._pipe, seconds)


def _drive(
    pipe: Connection, kind: type[Contender], size: int, environment: Mapping[str, str]
) -> None:
    os.environ.update(environment)
    try:
        contender = kind(buffer(size))
    except Exception as error:
        pipe.send(RuntimeError(f"{kind.name}: {error}\n{traceback.format_exc()}"))
        return
    pipe.send(contender.pids)
    while True:
        action, arguments = pipe.recv()
        try:
            pipe.send(action(contender, *arguments))
        except Exception as error:
            reason = str(error) or type(error).__name__
            problem = f"{contender.name}: {action.__name__}: {reason}\n{traceback.format_exc()}"
            pipe.send(RuntimeError(problem))


def start(
    kinds: Sequence[type[Contender]], size: int, environment: Mapping[str, str] | None = None
) -> dict[str, Driver]:
    """Start a driver for each contender at once, by name: all, or none."""
    drivers: dict[str, Driver] = {}
    try:
        for kind in kinds:
            drivers[kind.name] = Driver(kind, size, environment, wait=False)
        for driver in drivers.values():
            driver.wait_until_ready()
    except BaseException:
        for driver in drivers.values():
            driver.close()
        raise
    return drivers


# Actions.


def turn(
    contender: Contender, what: str, case: Case, repeat: int, seconds: float = 0.0
) -> tuple[int, float]:
    """Make transfers, after one that wakes all threads, `repeat` at least and for this time.

    Returns:
        Their number, and the seconds that they took.
    """
    run = partial(getattr(contender, what), case)
    run()
    begin = time.perf_counter()
    done = 0
    while True:
        run()
        done += 1
        elapsed = time.perf_counter() - begin
        if done >= repeat and elapsed >= seconds:
            return done, elapsed


def prepare(contender: Contender, case: Case) -> None:
    """Do what users do once per cache, then a read of which every byte is checked."""
    contender.check_read(case)


def prepare_write(contender: Contender, case: Case) -> None:
    """After `prepare`, make a write of which every byte is checked."""
    contender.check_write(case)


def facts_of_link(contender: Contender) -> dict[str, Any]:
    """Return the facts of the contender's link."""
    return contender.describe()


def leave(contender: Contender) -> None:
    """End the contender; it can do nothing more."""
    contender.close()


def call_times(
    contender: Contender, count: int, percents: Sequence[float], seconds: float = float("inf")
) -> list[float]:
    """Return percentiles, in us, of `count` pulls of one 4 KiB block, or of those in this time."""
    one = Case("one 4 KiB block", 4096, 4096)
    contender.prepare(one)
    values = timing.latencies(partial(contender.read, one), count, seconds)
    return [timing.percentile(values, percent) for percent in percents]
