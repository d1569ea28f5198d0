"""Figures of a run as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from llm_datadist.cli.bench.plan import size_text
from llm_datadist.cli.bench.results import contenders_of
from llm_datadist.cli.bench.work import MIB

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import RenderableType

    from llm_datadist.cli.bench.results import Result, Run

__all__ = ["report"]


def report(run: Run) -> RenderableType:
    """Return the tables of a run."""
    parts: list[RenderableType] = []
    for path, operation in _groups(run.results):
        rows = [r for r in run.results if (r.path, r.operation) == (path, operation)]
        blocks = [row for row in rows if row.kind == "blocks"]
        if blocks:
            parts += [Text(f"{path}, {operation}, GB/s by size of blocks", "bold"), _rates(blocks)]
        models = [row for row in rows if row.kind == "model"]
        if models:
            parts += [Text(f"{path}, {operation}, KV cache of a prompt", "bold"), _models(models)]
    if run.latencies:
        parts += [Text("one block of 4 KiB", "bold"), _latencies(run)]
    parts += [
        Text(f"{limit.path}: {limit.name} {limit.gbps:.2f} GB/s (limit)") for limit in run.limits
    ]
    parts += [Text(note, "yellow") for note in [*run.notes, *_problems(run.results)]]
    return Group(*parts)


def _groups(rows: Iterable[Result]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row.path, row.operation) for row in rows))


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left")
    return table


def _rates(rows: Sequence[Result]) -> Table:
    names = contenders_of(rows)
    table = _table("block", "MiB", *names)
    found = {(row.block_bytes, row.contender): row for row in rows}
    for size in sorted({row.block_bytes for row in rows}):
        each = [found.get((size, name)) for name in names]
        total = next(row.total_bytes for row in each if row is not None)
        table.add_row(size_text(size), f"{total / MIB:,.0f}", *map(_rate, each))
    return table


def _rate(row: Result | None) -> str:
    if row is None:
        return ""
    return "-" if row.gbps_median is None else f"{row.gbps_median:.2f}"


def _models(rows: Sequence[Result]) -> Table:
    table = _table("model", "TP", "tokens", "MiB", "tensors", "block", "contender", "GB/s", "ms")
    for row in rows:
        table.add_row(
            row.preset,
            str(row.tp),
            f"{row.prompt_tokens:,}",
            f"{row.total_bytes / MIB:,.0f}",
            str(row.num_tensors),
            size_text(row.block_bytes),
            row.contender,
            _rate(row),
            "-" if row.ms_median is None else f"{row.ms_median:.1f}",
        )
    return table


def _latencies(run: Run) -> Table:
    table = _table("path", "contender", "p50, us", "p99, us")
    for one in run.latencies:
        table.add_row(one.path, one.contender, f"{one.p50_us:.1f}", f"{one.p99_us:.1f}")
    return table


def _problems(rows: Iterable[Result]) -> Iterator[str]:
    """Yield each problem once, with where it was."""
    places: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.problem:
            place = row.preset or size_text(row.block_bytes)
            key = (row.problem, f"{row.path}, {row.contender}")
            places.setdefault(key, []).append(f"{row.operation} {place}")
    for (problem, who), what in places.items():
        yield f"{who}: {', '.join(what)}: {problem}"
