"""Figures of a replay as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from llm_datadist.cli.bench.plan import size_text
from llm_datadist.cli.bench.work import MIB

if TYPE_CHECKING:
    from rich.console import RenderableType

    from llm_datadist.cli.bench.trace.results import TraceRun

__all__ = ["trace_report"]


def trace_report(run: TraceRun) -> RenderableType:
    """Return a table of times, and sentences about the rest."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("ms", "p50", "p90", "p99", "max"):
        table.add_column(heading, justify="left" if heading == "ms" else "right")
    for name, times in (
        ("arrival of a request to its last block", run.latency_ms),
        ("pull of the blocks that it misses", run.pull_ms),
    ):
        if times is not None:
            values = (times.p50, times.p90, times.p99, times.max)
            table.add_row(name, *(f"{value:,.1f}" for value in values))
    return Group(
        Text(
            f"{run.trace}: {run.requests:,} requests in {run.seconds:,.1f} s, {run.speed:g} times "
            f"as fast, {run.path}",
            "bold",
        ),
        table,
        Text(
            f"{run.blocks:,} blocks of {run.block_tokens} tokens, {run.hit_ratio:.1%} in the cache "
            f"of {run.cache_blocks:,}; {run.total_bytes / MIB:,.0f} MiB pulled at "
            f"{run.gbps:.2f} GB/s"
        ),
        Text(f"later than {run.late_ms:g} ms: {run.late_ratio:.1%} of the requests"),
        Text(
            f"{run.preset}, TP {run.tp}, {run.layers} layers: a block takes "
            f"{size_text(run.block_bytes)}"
        ),
    )
