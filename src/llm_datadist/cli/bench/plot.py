"""Figures of a run as a picture: rates over sizes of blocks, and the KV caches of models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_datadist.cli.bench.plan import size_text
from llm_datadist.cli.bench.results import contenders_of
from llm_datadist.cli.pictures import new_figure, save

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from llm_datadist.cli.bench.results import Limit, Result, Run

__all__ = ["plot"]

_COLORS = ("#2563a8", "#d97706", "#5a9e4b", "#a05195")
_LIMIT_COLOR = "#8a939c"
_LINES = {"pull": "-", "push": "--"}
_MARKERS = {"pull": "o", "push": "s"}
_MOST_TICKS = 12
_COLUMNS = 2


def plot(run: Run, path: Path, *, only: str = "", source: str = "") -> None:
    """Draw a panel for each data path with blocks of one size, and one for each with models.

    Args:
        run: The figures.
        path: The file.
        only: Draw this data path only.
        source: What the file names as its source.

    Raises:
        ValueError: There is nothing to draw, or the file cannot be written.
    """
    measured = [
        row for row in run.results if row.gbps_median is not None and only in {"", row.path}
    ]
    panels = list(dict.fromkeys((row.kind, row.path) for row in measured))
    if not panels:
        raise ValueError(f"--plot {path}: nothing was measured: give more --seconds")
    columns = min(_COLUMNS, len(panels))
    rows_of_panels = -(-len(panels) // columns)
    figure = new_figure(5.2 * columns, 4.2 * rows_of_panels)
    machine = run.machine
    figure.suptitle(
        f"llm-datadist {run.version} on {machine.cpu}, {machine.cores} cores, {run.started[:10]}",
        fontsize=9,
        x=0.01,
        ha="left",
    )
    grid = figure.subplots(rows_of_panels, columns, squeeze=False).flatten()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, (kind, name) in zip(grid, panels, strict=False):
        rows = [row for row in measured if (row.kind, row.path) == (kind, name)]
        if kind == "blocks":
            _draw_blocks(axes, name, rows, [one for one in run.limits if one.path == name])
        else:
            _draw_models(axes, name, rows)
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path, source)


def _color(name: str, names: Sequence[str], rows: Sequence[Result]) -> str:
    if any(row.is_limit for row in rows if row.contender == name):
        return _LIMIT_COLOR
    return _COLORS[names.index(name) % len(_COLORS)]


def _draw_blocks(axes: Axes, path: str, rows: Sequence[Result], limits: Sequence[Limit]) -> None:
    names = contenders_of(rows)
    sizes = sorted({row.block_bytes for row in rows})
    for name in names:
        is_limit = any(row.is_limit for row in rows if row.contender == name)
        for operation, line in _LINES.items():
            points = sorted(
                (row.block_bytes, row.gbps_median)
                for row in rows
                if (row.contender, row.operation) == (name, operation)
            )
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    line,
                    marker=_MARKERS[operation],
                    markersize=4,
                    color=_color(name, names, rows),
                    label=f"{name}, {operation}" + (" (limit)" if is_limit else ""),
                )
    for limit in limits:
        axes.axhline(limit.gbps, linestyle=":", color=_LIMIT_COLOR, label=f"{limit.name} (limit)")
    axes.set_xscale("log", base=2)
    ticks = sizes[:: -(-len(sizes) // _MOST_TICKS)]
    axes.set_xticks(ticks, [size_text(size) for size in ticks], rotation=35, fontsize=8)
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_title(path, fontsize=10)
    axes.set_xlabel("size of a block")
    axes.set_ylabel("GB/s")
    axes.grid(alpha=0.3)
    _add_legend(axes)


def _add_legend(axes: Axes) -> None:
    """Name the lines below the panel, where they cover none."""
    axes.legend(fontsize=7, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.24))


def _draw_models(axes: Axes, path: str, rows: Sequence[Result]) -> None:
    names = contenders_of(rows)
    cases = list(dict.fromkeys(_case_of(row) for row in rows))
    height = 0.8 / len(names)
    for index, name in enumerate(names):
        own = [row for row in rows if row.contender == name]
        bars = axes.barh(
            [cases.index(_case_of(row)) + height * index for row in own],
            [row.gbps_median or 0.0 for row in own],
            height,
            color=_color(name, names, rows),
            label=name,
        )
        axes.bar_label(bars, [f" {row.ms_median:.4g} ms" for row in own], fontsize=7)
    middle = height * (len(names) - 1) / 2
    axes.set_yticks([at + middle for at in range(len(cases))], cases, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_title(f"{path}, KV cache of a prompt", fontsize=10)
    axes.set_xlabel("GB/s")
    axes.grid(axis="x", alpha=0.3)
    _add_legend(axes)


def _case_of(row: Result) -> str:
    return f"{row.preset}, TP {row.tp},\n{row.prompt_tokens:,} tokens, {row.operation}"
