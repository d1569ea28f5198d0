"""Timeline of a run as text: one row per layer, time from left to right.

The upper half of a row is computation, the lower half its transfer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_datadist.cli.demo.results import DemoResult, Span

COLORS = ("cyan", "green", "blue", "magenta")
TRANSFER_COLOR = "dark_orange"
_LABEL_WIDTH = 9


class Glyphs(NamedTuple):
    """Characters of a cell."""

    compute: str
    transfer: str
    both: str


UNICODE = Glyphs("▀", "▄", "█")
ASCII = Glyphs("'", ".", ":")


class Cell(NamedTuple):
    """Requests that one cell shows; None for none."""

    compute: int | None = None
    transfer: int | None = None


def row_cells(spans: Iterable[Span], end_ms: float, width: int) -> list[Cell]:
    """Map spans to `width` cells, each span to at least one."""
    computes: list[int | None] = [None] * width
    transfers: list[int | None] = [None] * width
    for span in spans:
        first = min(width - 1, max(0, int(span.start_ms / end_ms * width)))
        last = min(width - 1, max(first, int(span.end_ms / end_ms * width)))
        target = transfers if span.kind == "transfer" else computes
        target[first : last + 1] = [span.request] * (last + 1 - first)
    return [Cell(*pair) for pair in zip(computes, transfers, strict=True)]


def draw_row(cells: list[Cell], glyphs: Glyphs, *, color: bool) -> Text:
    """Return cells as text; with color, each cell has a compute and a transfer half."""
    text = Text()
    for compute, transfer in cells:
        compute_color = COLORS[(compute or 0) % len(COLORS)]
        if compute is None and transfer is None:
            text.append(" ")
        elif transfer is None:
            text.append(glyphs.compute, compute_color)
        elif compute is None:
            text.append(glyphs.transfer, TRANSFER_COLOR)
        elif color and glyphs is UNICODE:
            text.append(glyphs.compute, f"{compute_color} on {TRANSFER_COLOR}")
        else:
            text.append(glyphs.both, TRANSFER_COLOR)
    return text


def draw_timeline(result: DemoResult, width: int, glyphs: Glyphs, *, color: bool) -> Text:
    """Return the timeline, at most `width` columns wide."""
    columns = max(20, width - _LABEL_WIDTH)
    end_ms = max(span.end_ms for span in result.timeline) or 1.0
    lines = [_heading(result, end_ms, columns)]
    for layer in range(result.model.layers):
        spans = [span for span in result.timeline if span.layer == layer]
        cells = row_cells(spans, end_ms, columns)
        lines.append(_labeled(f"layer {layer}", draw_row(cells, glyphs, color=color)))
    pulls = [s for s in result.timeline if s.kind == "transfer" and s.layer is None]
    if pulls:
        cells = row_cells(pulls, end_ms, columns)
        lines.append(_labeled("pull", draw_row(cells, glyphs, color=color)))
    decoding = [span for span in result.timeline if span.kind == "decode"]
    lines.append(_labeled("decode", Text(_counts(decoding, end_ms, columns), "dim")))
    lines.append(_labeled("", Text(_axis(end_ms, columns), "dim")))
    lines.append(_legend(glyphs, pulled=bool(pulls), color=color))
    return Text("\n").join(lines)


def _labeled(label: str, row: Text) -> Text:
    text = Text().append(f"{label:<{_LABEL_WIDTH}}", "dim").append_text(row)
    text.rstrip()
    return text


def _heading(result: DemoResult, end_ms: float, columns: int) -> Text:
    """Return a line with each request's name where its prefill starts, if there is room."""
    text = Text(" " * _LABEL_WIDTH)
    for index, request in enumerate(result.requests):
        starts = [s.start_ms for s in result.timeline if s.kind == "compute" and s.request == index]
        column = _LABEL_WIDTH + int(min(starts, default=end_ms) / end_ms * columns)
        if len(text) <= column and column + len(request.name) <= _LABEL_WIDTH + columns:
            text.append(" " * (column - len(text)))
            text.append(request.name, f"bold {COLORS[index % len(COLORS)]}")
    return text


def _counts(spans: list[Span], end_ms: float, columns: int) -> str:
    """Return the number of requests in decoding, one digit per cell; + for ten and more."""
    counts = [0] * columns
    for span in spans:
        for column, cell in enumerate(row_cells([span], end_ms, columns)):
            counts[column] += cell.compute is not None
    return "".join(" " if count == 0 else str(count) if count < 10 else "+" for count in counts)


def _axis(end_ms: float, columns: int) -> str:
    left, middle, right = "0", f"{end_ms / 2:,.0f}", f"{end_ms:,.0f} ms"
    return left + middle.center(columns - len(left) - len(right)) + right


def _legend(glyphs: Glyphs, *, pulled: bool, color: bool) -> Text:
    text = Text(" " * _LABEL_WIDTH)
    text.append(glyphs.compute, COLORS[0]).append(" compute   ", "dim")
    text.append(glyphs.transfer, TRANSFER_COLOR).append(" transfer   ", "dim")
    if not pulled:
        text.append_text(draw_row([Cell(0, 0)], glyphs, color=color))
        text.append(" both at once   ", "dim")
    return text.append("1 2 3 requests in decode", "dim")
