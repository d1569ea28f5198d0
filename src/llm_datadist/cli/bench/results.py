"""What a run measured, as `--json` writes it.

`SCHEMA` grows when a field changes its meaning or goes; new fields may come without that.
"""

from __future__ import annotations

import os
import platform
import statistics
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

import llm_datadist

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "SCHEMA",
    "Latency",
    "Limit",
    "Machine",
    "Operation",
    "Result",
    "Run",
    "contenders_of",
    "machine",
    "new_run",
    "read_run",
    "write_json",
]

SCHEMA = 1

Operation = Literal["pull", "push"]


class Machine(msgspec.Struct, frozen=True):
    """The machine of the local process.

    Attributes:
        cpu: Name of the processor, empty if unknown.
        cores: Number of cores that the process may use.
        memory_bytes: Of the machine.
        kernel: Version of the kernel.
        python: Version of Python.
    """

    cpu: str
    cores: int
    memory_bytes: int
    kernel: str
    python: str


class Result(msgspec.Struct, kw_only=True):
    """One case of one contender.

    Attributes:
        path: "same-host", "pool", "tcp", or "hosts".
        operation: What moved the blocks.
        kind: "blocks": blocks of one size; "model": the KV cache of a prompt.
        contender: Name of the contender.
        is_limit: Whether the contender is a limit of the machine.
        preset, tp, prompt_tokens: Of a model; empty and 0 else.
        block_bytes: Of a block in one tensor.
        num_blocks, num_tensors: Of a transfer.
        total_bytes: Of a transfer.
        gbps: GB/s (10^9 bytes) of each round.
        gbps_median: Their median; null without any.
        ms_median: Milliseconds of one transfer at that rate; null without any.
        problem: Why there is no rate; empty if there is.
    """

    path: str
    operation: Operation
    kind: Literal["blocks", "model"]
    contender: str
    is_limit: bool = False
    preset: str = ""
    tp: int = 0
    prompt_tokens: int = 0
    block_bytes: int
    num_blocks: int
    num_tensors: int
    total_bytes: int
    gbps: list[float]
    gbps_median: float | None = None
    ms_median: float | None = None
    problem: str = ""

    def settle(self) -> None:
        """Compute the medians."""
        if self.gbps:
            self.gbps = [round(value, 4) for value in self.gbps]
            self.gbps_median = round(statistics.median(self.gbps), 4)
            self.ms_median = round(self.total_bytes / self.gbps_median / 1e6, 4)


class Latency(msgspec.Struct):
    """Times of pulls of one block of 4 KiB, in microseconds."""

    path: str
    contender: str
    p50_us: float
    p99_us: float


class Limit(msgspec.Struct):
    """A rate that does not depend on the size of blocks, in GB/s."""

    path: str
    name: str
    gbps: float


class Run(msgspec.Struct, kw_only=True):
    """One run of `llm-datadist bench`.

    Attributes:
        schema: Version of this format.
        version: Of llm-datadist.
        started: Local time in UTC, ISO 8601.
        seconds: How long it took.
        machine: Where it ran.
        peer: `host:port` of the other host with `--connect`, else empty.
        results, latencies, limits: The figures.
        notes: What was left out, and why.
    """

    schema: int = SCHEMA
    version: str
    started: str
    seconds: float = 0.0
    machine: Machine
    peer: str = ""
    results: list[Result] = []
    latencies: list[Latency] = []
    limits: list[Limit] = []
    notes: list[str] = []


def contenders_of(rows: Iterable[Result]) -> list[str]:
    """Return the contenders of rows, in their order; limits come last."""
    ordered = sorted(rows, key=lambda row: row.is_limit)
    return list(dict.fromkeys(row.contender for row in ordered))


def machine() -> Machine:
    """Return the facts of this machine."""
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
        python=platform.python_version(),
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def new_run(peer: str = "") -> Run:
    """Return a run that starts now."""
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Run(version=llm_datadist.__version__, started=started, machine=machine(), peer=peer)


def write_json(path: Path, run: msgspec.Struct) -> None:
    """Write the figures of a run.

    Raises:
        OSError: The file cannot be written.
    """
    path.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n")


def read_run(path: Path) -> Run:
    """Return a run that was written.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not that of a run, or of another schema.
    """
    try:
        run = msgspec.json.decode(path.read_bytes(), type=Run)
    except msgspec.MsgspecError as error:
        raise ValueError(
            f"{path} is not the file of a run of llm-datadist bench: {error}"
        ) from None
    if run.schema != SCHEMA:
        raise ValueError(f"{path} has schema {run.schema}, not {SCHEMA}: make it again")
    return run
