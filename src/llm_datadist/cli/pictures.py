"""Files of the options `--plot`, which need matplotlib (the extra `plot`)."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

__all__ = ["SUFFIXES", "check_can_draw", "new_figure", "save"]

SUFFIXES = (".png", ".svg", ".pdf")


def check_can_draw(path: Path) -> None:
    """Check that a picture can be drawn after a run.

    Raises:
        ValueError: matplotlib is missing, the directory is, or the kind of file is unknown.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib: pip install 'llm-datadist[plot]'")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--plot {path}: the name must end in one of {', '.join(SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"--plot {path}: there is no directory {path.absolute().parent}")


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  # an extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(width, height), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path, source: str = "") -> None:
    """Write the file of a picture.

    Args:
        figure: The picture.
        path: The file.
        source: What an .svg file names as its source; it then has no date either, and is the same
            each time.

    Raises:
        ValueError: It cannot be written.
    """
    from matplotlib import rc_context  # noqa: PLC0415  # an extra

    metadata = {"Source": source, "Date": None} if source else None
    try:
        with rc_context({"svg.hashsalt": source} if source else {}):
            figure.savefig(path, metadata=metadata)
    except OSError as problem:
        raise ValueError(f"--plot {path}: {problem.strerror or problem}") from problem
