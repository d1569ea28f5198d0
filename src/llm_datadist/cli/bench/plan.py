"""Cases of a run, and how its time is divided among them."""

from __future__ import annotations

import math
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llm_datadist.cli.bench.work import MIB, Case

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from llm_datadist.cli.bench.presets import Preset
    from llm_datadist.cli.bench.results import Operation

__all__ = [
    "SWEEP",
    "Clock",
    "Job",
    "busy_note",
    "check_memory",
    "model_jobs",
    "parse_size",
    "shortened",
    "size_text",
    "sweep_jobs",
    "total_bytes",
]

SWEEP = tuple(256 << (2 * step) for step in range(10))
"""256 bytes to 64 MiB, in steps of four."""

_MOST_BLOCKS = 16_384
_USUAL_BLOCK = 64 << 10
_LEAST_TOTAL, _MOST_TOTAL = 2 * MIB, 256 * MIB
_PREPARED_BYTES_PER_S = 100 * MIB  # filled, moved and checked
_SPARE_BYTES = 512 * MIB
_BUSY = 0.5
_SUFFIXES = {"": 0, "K": 10, "M": 20, "G": 30}


@dataclass(frozen=True)
class Job:
    """One case over one path.

    Attributes:
        path: Name of the path.
        case: What moves.
        preset: The model, or None for blocks of one size.
        prompt_tokens: Of the model.
        operations: What moves it, in turn.
    """

    path: str
    case: Case
    operations: Sequence[Operation]
    preset: Preset | None = None
    prompt_tokens: int = 0


class Clock:
    """Time of a run, divided evenly among what is left to do.

    Args:
        seconds: Of the run.
        steps: Number of things to do.
    """

    def __init__(self, seconds: float, steps: int) -> None:
        self.started: float = time.monotonic()
        self._ends = self.started + seconds
        self.steps = steps
        self.done: int = 0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def left_s(self) -> float:
        """Seconds until the end, at least 0."""
        return max(0.0, self._ends - time.monotonic())

    @property
    def share_s(self) -> float:
        """Seconds for the next thing to do."""
        return self.left_s / max(1, self.steps - self.done)

    @property
    def expected_s(self) -> float:
        """Seconds until the end as what is done suggests, at most `left_s` while there is any."""
        if not self.done:
            return self.left_s
        expected_s = self.elapsed_s / self.done * (self.steps - self.done)
        return min(self.left_s, expected_s) if self.left_s else expected_s

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of the block."""
        began = time.monotonic()
        try:
            yield
        finally:
            pause = time.monotonic() - began
            self.started += pause
            self._ends += pause

    def step(self, count: int = 1) -> None:
        """Count things as done."""
        self.done += count


def total_bytes(block_bytes: int, slot_s: float) -> int:
    """Return how much a transfer of blocks of one size moves.

    Args:
        block_bytes: Size of a block.
        slot_s: Seconds for one contender, half of which may go by before the first timed transfer.
    """
    wanted = min(max(slot_s / 2 * _PREPARED_BYTES_PER_S, _LEAST_TOTAL), _MOST_TOTAL)
    blocks = min(max(2, int(wanted) // block_bytes), _MOST_BLOCKS)
    return blocks * block_bytes


def sweep_jobs(
    path: str, sizes: Iterable[int], operations: Sequence[Operation], slot_s: float
) -> list[Job]:
    """Return a job for each size of blocks, usual sizes first: time may run out."""
    return [
        Job(path, Case(size_text(size), size, total_bytes(size, slot_s)), operations)
        for size in sorted(sizes, key=lambda size: abs(math.log2(size / _USUAL_BLOCK)))
    ]


def shortened(job: Job, slot_s: float) -> Job:
    """Return the job with as many bytes as fit into the time, if its blocks are of one size."""
    size = job.case.block_bytes
    total = total_bytes(size, slot_s)
    if job.preset is not None or total >= job.case.total_bytes:
        return job
    return replace(job, case=replace(job.case, total_bytes=total))


def model_jobs(
    path: str, presets: Iterable[Preset], prompts: Iterable[int], operations: Sequence[Operation]
) -> list[Job]:
    """Return a job for each model and length of a prompt."""
    lengths = tuple(prompts)
    return [
        Job(path, preset.case(tokens), operations, preset, tokens)
        for preset in presets
        for tokens in lengths
    ]


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 256, 4K, 1M or 2GiB.

    Raises:
        ValueError: It is none.
    """
    number = text.strip().upper().removesuffix("IB").removesuffix("B")
    digits = number.rstrip("KMG")
    suffix = number[len(digits) :]
    if suffix not in _SUFFIXES or not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"{text!r} is no size; give a number of bytes, such as 256, 4K or 1M")
    return int(digits) << _SUFFIXES[suffix]


def size_text(size: int) -> str:
    """Return a size in the largest unit that divides it."""
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size % (1 << shift) == 0 and size:
            return f"{size >> shift} {unit}"
    return f"{size} B"


def busy_note() -> str:
    """Return a sentence if other programs keep this machine busy, else an empty text."""
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load < _BUSY * cores:
        return ""
    return (
        f"the machine was busy before the run (load {load:.1f} on {cores} cores): figures are "
        "below those of a quiet one, and vary"
    )


def check_memory(needed: int, remedy: str) -> None:
    """Check that the machine has as much memory to spare.

    Raises:
        ValueError: It has not; with the remedy.
    """
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") + _reclaimable()
    if needed + _SPARE_BYTES > free:
        raise ValueError(
            f"the run needs {needed / MIB:,.0f} MiB of memory, and the machine has "
            f"{free / MIB:,.0f} MiB to spare: {remedy}"
        )


def _reclaimable() -> int:
    """Return the bytes that the kernel would give back, less those that are free."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123 - short
            facts = dict(line.split(":", 1) for line in lines)
        kib = {name: int(facts[name].split()[0]) for name in ("MemAvailable", "MemFree")}
    except (OSError, KeyError, ValueError):
        return 0
    return max(0, kib["MemAvailable"] - kib["MemFree"]) << 10
