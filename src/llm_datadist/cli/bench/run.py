"""One run of `llm-datadist bench`: jobs from the options, figures, report, exit status."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from llm_datadist.cli.bench import processes
from llm_datadist.cli.bench.comparison import Comparison, Settings
from llm_datadist.cli.bench.paths import PATHS, check_installed
from llm_datadist.cli.bench.plan import Clock, check_memory, model_jobs, sweep_jobs
from llm_datadist.cli.bench.plot import plot
from llm_datadist.cli.bench.progress import Progress
from llm_datadist.cli.bench.report import report
from llm_datadist.cli.bench.results import new_run, write_json
from llm_datadist.cli.pictures import check_can_draw

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from llm_datadist.cli.bench.plan import Job
    from llm_datadist.cli.bench.presets import Preset
    from llm_datadist.cli.bench.results import Operation, Run

__all__ = ["Options", "measured", "run_bench"]

_FAILED, _USAGE, _INTERRUPTED = 1, 2, 130
_USUAL_SIZES = 4
_FILE_WIDTH = 110


@dataclass(frozen=True)
class Options:
    """What a run measures.

    Attributes:
        paths: Names of `paths.PATHS`.
        operations: "pull", "push", or both.
        block_sizes: Of the sweep; empty without one.
        presets, prompts: Models, and the lengths of their prompts.
        seconds: About how long the run takes at most, without the start of its processes.
        settings: What is compared.
    """

    paths: Sequence[str]
    operations: Sequence[Operation]
    block_sizes: Sequence[int]
    presets: Sequence[Preset]
    prompts: Sequence[int]
    seconds: float
    settings: Settings = field(default_factory=Settings)


def run_bench(
    options: Options, *, json_file: Path | None, plot_file: Path | None, verbose: bool
) -> int:
    """Run, print the report, and return the exit status."""
    errors = Console(stderr=True)
    try:
        for rival in options.settings.rivals:
            check_installed(rival)
        if json_file is not None:
            _check_writable("--json", json_file)
        if plot_file is not None:
            check_can_draw(plot_file)
        run = measured(options, errors, verbose=verbose)
        if json_file is not None:
            write_json(json_file, run)
        if plot_file is not None:
            plot(run, plot_file)
        width = None if sys.stdout.isatty() else _FILE_WIDTH
        Console(width=width).print(report(run), highlight=False)
    except ValueError as problem:
        return _error(errors, str(problem), _USAGE)
    except RuntimeError as problem:
        text = str(problem)
        if not verbose:
            text = f"{text.splitlines()[0]} (--verbose shows more)"
        return _error(errors, text, _FAILED)
    except OSError as problem:
        return _error(errors, f"{problem.filename}: {problem.strerror or problem}", _FAILED)
    except KeyboardInterrupt:
        return _error(errors, "interrupted; the processes of the run have ended", _INTERRUPTED)
    return 0


def measured(options: Options, console: Console, *, verbose: bool = False) -> Run:
    """Return the figures of a run.

    Args:
        options: The run.
        console: Where progress is shown.
        verbose: Whether its processes show their output.

    Raises:
        ValueError: The machine has too little memory.
        RuntimeError: A contender cannot start, or this library failed.
    """
    os.environ[processes.OUTPUT] = "1" if verbose else "0"
    run = new_run()
    jobs = _jobs(options)
    extra = options.settings.limits + options.settings.latency
    clock = Clock(options.seconds, sum(len(each) + extra for each in jobs.values()))
    with Progress(console, clock) as progress:
        for name, each in jobs.items():
            _measure_path(name, each, options.settings, run, clock, progress)
    run.seconds = round(clock.elapsed_s, 1)
    return run


def _jobs(options: Options) -> dict[str, list[Job]]:
    """Return the jobs of each path."""
    per_path = len(options.block_sizes) + len(options.presets) * len(options.prompts)
    contenders = 2 + len(options.settings.rivals)
    slot_s = options.seconds / max(1, len(options.paths) * per_path * contenders)
    jobs = {}
    for name in options.paths:
        sweep = sweep_jobs(name, options.block_sizes, options.operations, slot_s)
        models = model_jobs(name, options.presets, options.prompts, options.operations)
        jobs[name] = sweep[:_USUAL_SIZES] + models + sweep[_USUAL_SIZES:]  # time may run out
    return jobs


def _measure_path(
    name: str, jobs: list[Job], settings: Settings, run: Run, clock: Clock, progress: Progress
) -> None:
    path = PATHS[name]
    size = max((job.case.total_bytes for job in jobs), default=0)
    buffers = 2 * (2 + len(settings.rivals))
    check_memory(
        buffers * size,
        "give a shorter --prompt, a larger --tp, smaller --block-size, or fewer --vs",
    )
    with Comparison(path, settings, size, run, clock, progress) as comparison:
        ends = clock.elapsed_s + clock.share_s * (len(jobs) + settings.limits + settings.latency)
        if settings.limits:
            comparison.measure_limits()
        if settings.latency:
            comparison.measure_latency()
        for number, job in enumerate(jobs):
            if clock.elapsed_s >= ends and number:
                names = "; ".join(each.case.name for each in jobs[number:])
                run.notes.append(f"{name}: no time for {names}: give more --seconds")
                clock.step(len(jobs) - number)
                break
            comparison.measure(job)


def _check_writable(option: str, path: Path) -> None:
    directory = path.absolute().parent
    if not directory.is_dir():
        raise ValueError(f"{option} {path}: there is no directory {directory}")
    if not os.access(path if path.exists() else directory, os.W_OK):
        raise ValueError(f"{option} {path}: cannot be written; give a place where you may write")


def _error(console: Console, text: str, status: int) -> int:
    console.print(f"[bold red]error:[/] {escape(text)}", highlight=False, soft_wrap=True)
    return status
