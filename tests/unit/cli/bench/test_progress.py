"""Progress of a run where standard error is no terminal, and on one."""

import io

import pytest
from rich.console import Console

from llm_datadist.cli.bench.plan import Clock
from llm_datadist.cli.bench.progress import Progress


@pytest.mark.parametrize("terminal", [False, True])
def test_what_was_done_and_the_time_left(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=90)
    clock = Clock(0.0, 3)
    with Progress(console, clock) as progress:
        clock.step()
        progress("tcp: pull [4 KiB]: 1 GB/s")
    shown = console.file.getvalue()
    if terminal:
        assert "0 s left" in shown
    else:
        assert shown == "[1/3,   0 s left] tcp: pull [4 KiB]: 1 GB/s\n"
