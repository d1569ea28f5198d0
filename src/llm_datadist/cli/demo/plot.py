"""Timeline of a run as a picture; needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_datadist.cli.demo.settings import DemoError
from llm_datadist.cli.pictures import check_can_draw, new_figure, save

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from llm_datadist.cli.demo.results import DemoResult

_COLORS = ("#2a9db5", "#5a9e4b", "#4a6fb5", "#a05195")
_TRANSFER = "#f28e2b"


def check_can_plot(path: Path) -> None:
    """Check that the picture can be drawn after the run.

    Raises:
        DemoError: As `check_can_draw`.
    """
    try:
        check_can_draw(path)
    except ValueError as problem:
        raise DemoError(str(problem)) from None


def plot(result: DemoResult, path: Path) -> None:
    """Draw compute and transfer per layer, and decoding per request.

    Raises:
        DemoError: The file cannot be written.
    """
    rows = result.model.layers + len(result.requests) + (result.mode == "pull")
    figure = new_figure(11, 1.6 + 0.32 * rows)
    figure.suptitle(_title(result), fontsize=10, x=0.01, ha="left")
    _draw(figure.add_subplot(), result)
    try:
        save(figure, path)
    except ValueError as problem:
        raise DemoError(str(problem)) from problem


def _draw(axes: Axes, result: DemoResult) -> None:
    layers = result.model.layers
    labels = [f"layer {layer}" for layer in range(layers)]
    pull_row = len(labels)
    if result.mode == "pull":
        labels.append("pull, all layers")
    decode_row = len(labels)
    labels += [f"decode {one.name}, {one.prompt_tokens} tokens" for one in result.requests]
    for span in result.timeline:
        bar = [(span.start_ms, span.duration_ms)]
        color = _COLORS[span.request % len(_COLORS)]
        if span.kind == "compute" and span.layer is not None:
            axes.broken_barh(bar, (span.layer - 0.4, 0.45), facecolors=color)
        elif span.kind == "transfer":
            # The line makes a transfer of a fraction of a millisecond visible at all.
            place = (pull_row - 0.17 if span.layer is None else span.layer + 0.08, 0.34)
            axes.broken_barh(bar, place, facecolors=_TRANSFER, edgecolors=_TRANSFER, linewidth=1.2)
        elif span.kind == "decode":
            axes.broken_barh(
                bar, (decode_row + span.request - 0.3, 0.6), facecolors=color, alpha=0.55
            )
    for index, request in enumerate(result.requests):
        first = min(s.start_ms for s in result.timeline if s.request == index)
        color = _COLORS[index % len(_COLORS)]
        axes.text(first, -0.5, request.name, color=color, va="bottom", fontweight="bold")
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(len(labels) - 0.4, -1.3)
    axes.set_xlim(left=0)
    axes.set_xlabel("ms since the requests were submitted")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    _legend(axes)


def _legend(axes: Axes) -> None:
    from matplotlib.patches import Patch  # noqa: PLC0415

    handles = [
        Patch(color=_COLORS[0], label="compute"),
        Patch(color=_TRANSFER, label="transfer of KV blocks"),
        Patch(color=_COLORS[0], alpha=0.55, label="decode"),
    ]
    axes.legend(
        handles=handles,
        fontsize=8,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=3,
        frameon=False,
    )


def _title(result: DemoResult) -> str:
    mebibytes = sum(request.kv_bytes for request in result.requests) / 2**20
    equal = "tokens equal" if result.tokens_equal else "TOKENS DIFFER"
    return (
        f"llm-datadist demo, mode {result.mode}, backend {result.backend}: "
        f"{len(result.requests)} requests, {mebibytes:.1f} MiB of KV cache, {equal}"
    )
