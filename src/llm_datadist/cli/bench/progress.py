"""Progress of a run on standard error: a bar on a terminal, lines elsewhere, with the time left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bars

if TYPE_CHECKING:
    from rich.console import Console
    from typing_extensions import Self

    from llm_datadist.cli.bench.plan import Clock

__all__ = ["Progress"]


class Progress:
    """Shows a sentence about each thing that is done. A context manager around the run.

    Args:
        console: Where to show it.
        clock: Of the run.
    """

    def __init__(self, console: Console, clock: Clock) -> None:
        self._console, self._clock = console, clock
        self._bars = Bars(
            SpinnerColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bars.add_task("starting", total=clock.steps, left=self._left())

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def __call__(self, sentence: str) -> None:
        """Show what was done last."""
        left = self._left()
        if self._console.is_terminal:
            self._bars.update(
                self._task, completed=self._clock.done, description=escape(sentence), left=left
            )
        else:
            place = f"[{self._clock.done}/{self._clock.steps}, {left}] {sentence}"
            self._console.print(escape(place), highlight=False, soft_wrap=True)

    def _left(self) -> str:
        return f"{self._clock.expected_s:3.0f} s left"
