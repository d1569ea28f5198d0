"""One run of `llm-datadist bench trace`: caches that fit, replay, report, exit status."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.console import Console

from llm_datadist.cli.bench.datadist import Datadist
from llm_datadist.cli.bench.ending import check_files, exit_status, print_result
from llm_datadist.cli.bench.paths import PATHS
from llm_datadist.cli.bench.plan import Clock, check_memory, size_text
from llm_datadist.cli.bench.progress import Progress
from llm_datadist.cli.bench.results import new_run, write_json
from llm_datadist.cli.bench.trace.replay import Replay, Shape
from llm_datadist.cli.bench.trace.report import trace_report
from llm_datadist.cli.bench.trace.requests import read_requests
from llm_datadist.cli.bench.trace.results import TraceRun, percentiles
from llm_datadist.cli.bench.work import buffer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from llm_datadist.cli.bench.presets import Preset
    from llm_datadist.cli.bench.trace.replay import Served
    from llm_datadist.cli.bench.trace.requests import Request

__all__ = ["TraceOptions", "run_trace", "shape_of", "summary"]

_REPORTS = 20


@dataclass(frozen=True)
class TraceOptions:
    """What is replayed, and how.

    Attributes:
        file: The trace.
        most: Requests that are replayed at most; None for all.
        preset: The model.
        layers: How many of its layers move; None for all.
        path: Name of the data path.
        memory_bytes: Of each of the two caches.
        block_tokens: Tokens of a block of the trace.
        speed: How much faster than the trace.
        parallel: Requests at once.
        late_ms: A request is late if its blocks take longer.
    """

    file: Path
    most: int | None
    preset: Preset
    layers: int | None
    path: str
    memory_bytes: int
    block_tokens: int
    speed: float
    parallel: int
    late_ms: float


def run_trace(options: TraceOptions, *, json_file: Path | None, verbose: bool) -> int:
    """Replay, print the report, and return the exit status."""
    with exit_status(verbose=verbose) as outcome:
        check_files(json_file)
        requests = read_requests(options.file, options.most)
        shape = shape_of(options, requests)
        check_memory(2 * options.memory_bytes, "give a smaller --memory")
        served = _replayed(options, shape, requests)
        result = summary(options, shape, served)
        if json_file is not None:
            write_json(json_file, result)
        print_result(trace_report(result))
    return outcome.status


def shape_of(options: TraceOptions, requests: Sequence[Request]) -> Shape:
    """Return the caches that the memory has room for.

    Raises:
        ValueError: A request does not fit, or blocks do not fit into each other; with the remedy.
    """
    preset = options.preset
    if options.layers is not None:
        if options.layers > preset.layers:
            raise ValueError(
                f"--layers {options.layers}: {preset.name} has {preset.layers}; give no more"
            )
        preset = replace(preset, layers=options.layers)
    if options.block_tokens % preset.block_tokens:
        raise ValueError(
            f"--block-tokens {options.block_tokens}: {preset.name} has blocks of "
            f"{preset.block_tokens} tokens; give a multiple of that"
        )
    shape = Shape(preset, options.block_tokens, 0)
    shape = replace(shape, capacity=options.memory_bytes // shape.block_bytes)
    largest = max(len(set(request.hash_ids)) for request in requests)
    if largest > shape.capacity:
        layer_bytes = shape.block_bytes // preset.layers
        layers = options.memory_bytes // (largest * layer_bytes)
        remedy = f"--layers {layers} (only so many layers move)" if layers else "--requests"
        raise ValueError(
            f"{options.file}: a request has {largest} blocks of {options.block_tokens} tokens, "
            f"which take {size_text(largest * shape.block_bytes)} with {preset.layers} layers of "
            f"{preset.name}; --memory is {size_text(options.memory_bytes)}: give more, or {remedy}"
        )
    return shape


def _replayed(options: TraceOptions, shape: Shape, requests: Sequence[Request]) -> list[Served]:
    kind = PATHS[options.path].own
    assert issubclass(kind, Datadist)
    contender = kind(buffer(shape.case().total_bytes))
    try:
        replay = Replay(contender, shape, options.parallel)
        replay.prepare()
        span_s = (requests[-1].timestamp - requests[0].timestamp) / 1000 / options.speed
        clock = Clock(span_s, len(requests))
        with Progress(Console(stderr=True), clock) as progress:
            every = max(1, len(requests) // _REPORTS)

            def report(done: int) -> None:
                if done >= clock.done + every:
                    clock.step(done - clock.done)
                    progress(f"{done:,} of {len(requests):,} requests")

            return replay.run(requests, options.speed, report)
    finally:
        contender.close()


def summary(options: TraceOptions, shape: Shape, served: Sequence[Served]) -> TraceRun:
    """Return the figures of a replay."""
    facts = new_run()
    latencies = [(one.done_s - one.due_s) * 1000 for one in served]
    pulls = [one for one in served if one.hits < one.blocks]
    blocks, hits = sum(one.blocks for one in served), sum(one.hits for one in served)
    total_bytes = (blocks - hits) * shape.block_bytes
    busy_s = _union_s([(one.begun_s, one.pulled_s) for one in pulls])
    latency_ms = percentiles(latencies)
    assert latency_ms is not None
    return TraceRun(
        version=facts.version,
        started=facts.started,
        machine=facts.machine,
        trace=options.file.name,
        preset=shape.preset.name,
        tp=shape.preset.tp,
        layers=shape.preset.layers,
        path=options.path,
        speed=options.speed,
        parallel=options.parallel,
        block_tokens=shape.block_tokens,
        block_bytes=shape.block_bytes,
        cache_blocks=shape.capacity,
        requests=len(served),
        seconds=round(max(one.done_s for one in served), 3),
        blocks=blocks,
        hits=hits,
        hit_ratio=round(hits / blocks, 4) if blocks else 0.0,
        total_bytes=total_bytes,
        gbps=round(total_bytes / busy_s / 1e9, 4) if busy_s else 0.0,
        latency_ms=latency_ms,
        pull_ms=percentiles((one.pulled_s - one.begun_s) * 1000 for one in pulls),
        late_ms=options.late_ms,
        late_ratio=round(sum(each > options.late_ms for each in latencies) / len(served), 4),
    )


def _union_s(spans: Sequence[tuple[float, float]]) -> float:
    """Return the seconds that at least one span covers."""
    total, end = 0.0, float("-inf")
    for begin, until in sorted(spans):
        total += max(0.0, until - max(begin, end))
        end = max(end, until)
    return total
