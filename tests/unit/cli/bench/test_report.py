"""Tables of a run."""

import pytest
from rich.console import Console

from llm_datadist.cli.bench.report import report


@pytest.fixture
def lines(run):
    console = Console(width=110)
    with console.capture() as capture:
        console.print(report(run), highlight=False)
    return [" ".join(line.split()) for line in capture.get().splitlines()]


def test_rates_by_size_with_limits_last(lines):
    at = lines.index("tcp, pull, GB/s by size of blocks")
    assert lines[at + 1 : at + 4] == [
        "block MiB llm-datadist (tcp) NIXL bare",
        "256 B 1 0.50",
        "4 KiB 1 2.00 - 9.00",
    ]


def test_models_with_the_time_of_a_transfer(lines):
    at = lines.index("tcp, pull, KV cache of a prompt")
    assert lines[at + 2] == "llama-3.1-8b 1 2,048 1 1 4 KiB llm-datadist (tcp) 1.50 0.7"


@pytest.mark.parametrize(
    "line",
    [
        "tcp llm-datadist (tcp) 20.4 61.6",
        "tcp: iperf3 -P 2 3.25 GB/s (limit)",
        "tcp: no time for 64 MiB: give more --seconds",
        "tcp, NIXL: pull 4 KiB, push 4 KiB: NIXL: ERR",
    ],
)
def test_the_rest_is_in_lines(lines, line):
    assert line in lines
