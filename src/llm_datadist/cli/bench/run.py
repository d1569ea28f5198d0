"""One run of `llm-datadist bench`: jobs from the options, figures, report, exit status."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console

from llm_datadist.cli.bench.comparison import Comparison, Settings
from llm_datadist.cli.bench.ending import check_files, exit_status, print_result
from llm_datadist.cli.bench.paths import PATHS, DataPath, check_installed
from llm_datadist.cli.bench.plan import Clock, busy_note, check_memory, model_jobs, sweep_jobs
from llm_datadist.cli.bench.plot import plot
from llm_datadist.cli.bench.progress import Progress
from llm_datadist.cli.bench.remote import BACKEND, PEER, Remote, fitting, linked, offered
from llm_datadist.cli.bench.report import report
from llm_datadist.cli.bench.results import new_run, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from llm_datadist.cli.bench.plan import Job
    from llm_datadist.cli.bench.presets import Preset
    from llm_datadist.cli.bench.results import Operation, Run

__all__ = ["Options", "run_bench"]

HOSTS = "hosts"
"""The path between two hosts in results."""

_USUAL_SIZES = 4


@dataclass(frozen=True)
class Options:
    """What a run measures.

    Attributes:
        paths: Names of `paths.PATHS`.
        operations: "pull", "push", or both.
        block_sizes: Of the sweep; empty without one.
        presets, prompts: Models, and the lengths of their prompts.
        connect: Address of an offering end on another host; empty without one. `paths` is then
            "auto" or a data path.
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
    connect: str = ""

    @property
    def slot_s(self) -> float:
        """Seconds of one contender with one case."""
        cases = len(self.block_sizes) + len(self.presets) * len(self.prompts)
        slots = len(self.paths) * cases * (2 + len(self.settings.rivals))
        return self.seconds / max(1, slots)


def run_bench(
    options: Options, *, json_file: Path | None, plot_file: Path | None, verbose: bool
) -> int:
    """Run, print the report, and return the exit status."""
    with exit_status(verbose=verbose) as outcome:
        for rival in options.settings.rivals:
            check_installed(rival)
        check_files(json_file, plot_file)
        run = new_run(options.connect)
        if options.connect:
            plan = [hosts_plan(options, run)]
        else:
            plan = [(PATHS[name], _jobs(options, name)) for name in options.paths]
        measure(plan, options, run, Console(stderr=True))
        if json_file is not None:
            write_json(json_file, run)
        if plot_file is not None:
            plot(run, plot_file)
        print_result(report(run))
    return outcome.status


def measure(
    plan: Sequence[tuple[DataPath, Sequence[Job]]], options: Options, run: Run, console: Console
) -> None:
    """Measure all jobs, with progress on the console.

    Raises:
        ValueError: The machine has too little memory.
        RuntimeError: A contender cannot start, or this library failed.
    """
    if note := busy_note():
        run.notes.append(note)
    settings = options.settings
    extra = settings.limits + settings.latency
    clock = Clock(options.seconds, sum(len(jobs) + extra for _, jobs in plan))
    with Progress(console, clock) as progress:
        for path, jobs in plan:
            _measure_path(path, jobs, settings, run, clock, progress)
    run.seconds = round(clock.elapsed_s, 1)


def _jobs(options: Options, name: str) -> list[Job]:
    """Return the jobs of a path."""
    slot_s = options.slot_s
    sweep = sweep_jobs(name, options.block_sizes, options.operations, slot_s)
    models = model_jobs(name, options.presets, options.prompts, options.operations)
    return sweep[:_USUAL_SIZES] + models + sweep[_USUAL_SIZES:]  # time may run out


def hosts_plan(options: Options, run: Run) -> tuple[DataPath, list[Job]]:
    """Return the jobs between this host and an offering end; note how the link moves blocks.

    Raises:
        LLMException: The peer cannot be linked.
        ValueError: It does not offer what is to be measured.
    """
    backend = "auto" if options.paths == ["auto"] else options.paths[0]
    with linked(options.connect, backend) as (instance, peer):
        offers = offered(instance, peer)
        backends = instance.describe_link(peer)["backend"]
    if isinstance(backends, dict):
        run.notes.append(f"{HOSTS}: the link moves blocks over {backends['host']}")
    path = DataPath(
        HOSTS, Remote, {}, environment={PEER: options.connect, BACKEND: backend}, is_remote=True
    )
    jobs = [fitting(job, offers) for job in _jobs(options, HOSTS)]
    return path, jobs


def _measure_path(
    path: DataPath,
    jobs: Sequence[Job],
    settings: Settings,
    run: Run,
    clock: Clock,
    progress: Progress,
) -> None:
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
                run.notes.append(f"{path.name}: no time for {names}: give more --seconds")
                clock.step(len(jobs) - number)
                break
            comparison.measure(job)
