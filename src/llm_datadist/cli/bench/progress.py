"""Progress of a run on standard error: a bar on a terminal, lines elsewhere, with the time left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Task
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
            _Left(clock),
            TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bars.add_task("starting", total=clock.steps)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def __call__(self, sentence: str) -> None:
        """Show what was done last."""
        if self._console.is_terminal:
            self._bars.update(self._task, completed=self._clock.done, description=escape(sentence))
        else:
            place = f"[{self._clock.done}/{self._clock.steps}, {_left(self._clock)}] {sentence}"
            self._console.print(escape(place), highlight=False, soft_wrap=True)


class _Left(ProgressColumn):
    """The time that is left, which goes on between two things that are done."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def render(self, task: Task) -> Text:
        return Text(_left(self._clock))


def _left(clock: Clock) -> str:
    return f"{clock.expected_s:3.0f} s left"
