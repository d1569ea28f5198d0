"""Figures of a benchmark."""

import pytest

from llm_datadist.cli.bench import timing
from llm_datadist.cli.bench.timing import Row, latencies, percentile


def test_a_row_has_the_median_of_its_rounds():
    assert Row("pull", "us", "GB/s", [3.0, 1.0, 2.0]).median == 2.0


@pytest.mark.parametrize(("percent", "expected"), [(0, 0), (50, 50), (99, 99), (100, 99)], ids=str)
def test_percentiles_of_sorted_values(percent, expected):
    assert percentile(list(range(100)), percent) == expected


def test_latencies_end_with_their_time(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    calls = []
    values = timing.latencies(lambda: calls.append(None), 1000, 40.0)
    assert len(calls) - len(values) == 11  # a quarter
    assert 20 <= len(values) <= 30
    assert len(timing.latencies(lambda: None, 1000, 0.0)) == 1


def test_latencies_are_sorted_and_of_all_calls_but_the_warm_up():
    calls = []
    values = latencies(lambda: calls.append(None), 7)
    assert values == sorted(values)
    assert (len(values), len(calls)) == (7, 14)
