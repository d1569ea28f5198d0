"""Measures the jobs of one path: contenders take turns, and every byte is checked before."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_datadist.cli.bench import limits
from llm_datadist.cli.bench.driver import (
    Driver,
    call_times,
    facts_of_link,
    leave,
    prepare,
    prepare_write,
    start,
    turn,
)
from llm_datadist.cli.bench.paths import remedy_of
from llm_datadist.cli.bench.plan import shortened
from llm_datadist.cli.bench.results import Latency, Limit, Result
from llm_datadist.cli.bench.work import MIB, Case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import TypeAlias

    from typing_extensions import Self

    from llm_datadist.cli.bench.contender import Contender
    from llm_datadist.cli.bench.paths import DataPath
    from llm_datadist.cli.bench.plan import Clock, Job
    from llm_datadist.cli.bench.results import Operation, Run

    Report: TypeAlias = Callable[[str], None]

__all__ = ["Comparison", "Settings"]

_METHODS: dict[Operation, str] = {"pull": "read", "push": "write"}
_LONGEST_S, _LEAVE_S = 60.0, 5.0
_CALLS = 2000
_CEILING = Case("ceiling", MIB, 64 * MIB)


@dataclass(frozen=True)
class Settings:
    """What a run compares.

    Attributes:
        rivals: Names of other libraries, of `paths.RIVALS`.
        limits: Whether limits of the machine are measured.
        rounds: Most turns of each contender in each case.
        latency: Whether single blocks are timed.
    """

    rivals: Sequence[str] = ()
    limits: bool = True
    rounds: int = 5
    latency: bool = True


class Comparison:
    """The contenders of a path, of which one is awake at a time. A context manager.

    Args:
        path: The path.
        settings: What is compared.
        size: Bytes of the largest case.
        run: Where the figures go.
        clock: The time that is left.
        report: Called with a sentence about each thing that is done.

    Raises:
        RuntimeError: A contender cannot start; with the remedy.
    """

    def __init__(
        self,
        path: DataPath,
        settings: Settings,
        size: int,
        run: Run,
        clock: Clock,
        report: Report,
    ) -> None:
        self._path, self._settings, self._run = path, settings, run
        self._clock, self._report = clock, report
        self._size = max(size, _CEILING.total_bytes if settings.limits else 0)
        self._kinds: dict[str, type[Contender]] = {path.own.name: path.own}
        rivals = {path.rivals[name].name: name for name in settings.rivals if name in path.rivals}
        self._kinds |= {path.rivals[name].name: path.rivals[name] for name in rivals.values()}
        if settings.limits and path.limit is not None:
            self._kinds[path.limit.name] = path.limit
        self._prepared: set[str] = set()
        try:
            with clock.paused():
                self._drivers = start(list(self._kinds.values()), self._size, path.environment)
        except RuntimeError as error:
            failed = next((rivals[name] for name in rivals if str(error).startswith(name)), None)
            if failed is None:
                raise
            first, *more = str(error).splitlines()
            text = f"--vs {failed}: {first}: {remedy_of(failed)}, or leave it out"
            raise RuntimeError("\n".join([text, *more])) from None
        try:
            if path.expects:
                self._note_path()
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._path.is_remote and kind is None:
            with suppress(RuntimeError):
                self._drivers[self._path.own.name].call(leave, seconds=_LEAVE_S)
        self._close()

    def measure_limits(self) -> None:
        """Measure what does not depend on the size of blocks."""
        path = self._path
        if path.ceiling is not None:
            with self._clock.paused():
                driver = Driver(path.ceiling, _CEILING.total_bytes)
            try:
                seconds = min(0.5, self._clock.share_s / 2)
                done, elapsed = driver.call(turn, "read", _CEILING, 3, seconds)
            finally:
                driver.close()
            self._add_limit(driver.name, done * _CEILING.total_bytes / elapsed / 1e9)
        if path.has_iperf:
            try:
                self._add_limit(limits.IPERF, limits.iperf3(min(2.0, self._clock.share_s)))
            except RuntimeError as error:
                self._run.notes.append(f"{path.name}: no limit of TCP: {error}")
        self._clock.step()

    def measure_latency(self) -> None:
        """Time pulls of one block of 4 KiB."""
        names = [name for name in self._drivers if not self._is_limit(name)]
        seconds = self._clock.share_s / len(names)
        for name in names:
            found = self._attempt(name, call_times, _CALLS, (50, 99), seconds)
            if isinstance(found, str):
                self._run.notes.append(f"{self._path.name}: one block: {name}: {found}")
                continue
            p50, p99 = (round(value, 2) for value in found)
            self._run.latencies.append(Latency(self._path.name, name, p50, p99))
            self._report(f"{self._path.name}: one block of 4 KiB: {name} {p50:.0f} us")
        self._clock.step()

    def measure(self, job: Job) -> None:
        """Measure one job, as far as the time goes.

        Raises:
            RuntimeError: This library failed, or moved wrong bytes.
        """
        ends = self._clock.elapsed_s + self._clock.share_s
        self._prepared.clear()
        job = shortened(job, self._clock.share_s / len(self._kinds))
        for operation in job.operations:
            if operation == "push" and not self._path.pushes:
                continue
            rows = self._ready(job, operation)
            live = [row for row in rows.values() if not row.problem]
            shares = len(live) * self._settings.rounds
            left_s = max(0.0, ends - self._clock.elapsed_s)
            if operation == job.operations[0]:
                left_s /= len(job.operations)
            for number in range(self._settings.rounds):
                if number and self._clock.elapsed_s >= ends:
                    break
                for row in live:
                    self._turn(row, operation, job.case, left_s / max(1, shares))
            for row in rows.values():
                row.settle()
                self._run.results.append(row)
            self._report(_sentence(job, operation, rows.values()))
        self._clock.step()

    def _close(self) -> None:
        for driver in self._drivers.values():
            driver.close()
        self._drivers.clear()

    def _note_path(self) -> None:
        """Note when this library moves the blocks by another path than is to be measured."""
        link = self._drivers[self._path.own.name].call(facts_of_link)
        backend = link["backend"]["host"]
        if backend != self._path.expects:
            why = link["why"].get("host", "")
            self._run.notes.append(f"{self._path.name}: blocks move over {backend}, because {why}")

    def _is_limit(self, name: str) -> bool:
        return self._path.limit is not None and name == self._path.limit.name

    def _ready(self, job: Job, operation: Operation) -> dict[str, Result]:
        """Prepare the contenders, and check a transfer of each; return their rows."""
        rows = {}
        for name in list(self._kinds):
            if self._is_limit(name) and operation == "push":
                continue
            row = rows[name] = _row(job, operation, name)
            row.is_limit = self._is_limit(name)
            if name not in self._drivers:
                row.problem = "it could not be started again"
                continue
            found = None
            if operation == "pull" or name not in self._prepared:
                self._prepared.add(name)
                found = self._attempt(name, prepare, job.case)
            if operation == "push" and not isinstance(found, str):
                found = self._attempt(name, prepare_write, job.case)
            row.problem = found if isinstance(found, str) else ""
        return rows

    def _turn(self, row: Result, operation: Operation, case: Case, seconds: float) -> None:
        if row.problem:
            return
        found = self._attempt(row.contender, turn, _METHODS[operation], case, 1, seconds)
        if isinstance(found, str):
            row.problem = found
            row.gbps.clear()
            return
        done, elapsed = found
        row.gbps.append(case.total_bytes * done / elapsed / 1e9)

    def _attempt(self, name: str, action: Callable[..., object], *arguments: object) -> Any:  # noqa: ANN401 - of an action
        """Return what an action returns, or why a rival cannot do it; that one starts again.

        Raises:
            RuntimeError: This library failed.
        """
        try:
            return self._drivers[name].call(action, *arguments, seconds=_LONGEST_S)
        except RuntimeError as error:
            if name == self._path.own.name:
                raise
            problem = str(error).splitlines()[0]
            self._prepared.discard(name)
            self._drivers.pop(name).close()
            with suppress(RuntimeError), self._clock.paused():  # `_ready` says so from now on
                self._drivers |= start([self._kinds[name]], self._size, self._path.environment)
            return problem

    def _add_limit(self, name: str, gbps: float) -> None:
        self._run.limits.append(Limit(self._path.name, name, round(gbps, 4)))
        self._report(f"{self._path.name}: {name} {gbps:.2f} GB/s")


def _row(job: Job, operation: Operation, contender: str) -> Result:
    preset = job.preset
    return Result(
        path=job.path,
        operation=operation,
        kind="blocks" if preset is None else "model",
        contender=contender,
        preset="" if preset is None else preset.name,
        tp=0 if preset is None else preset.tp,
        prompt_tokens=job.prompt_tokens,
        block_bytes=job.case.block_bytes,
        num_blocks=job.case.count,
        num_tensors=job.case.tensors,
        total_bytes=job.case.total_bytes,
        gbps=[],
    )


def _sentence(job: Job, operation: Operation, rows: Iterable[Result]) -> str:
    rates = ", ".join(
        f"{row.contender} {row.gbps_median:.2f} GB/s"
        if row.gbps_median is not None
        else f"{row.contender} failed"
        for row in rows
    )
    return f"{job.path}: {operation} {job.case.name}: {rates}"
