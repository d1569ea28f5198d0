"""The picture of a run."""

import re

import pytest

pytest.importorskip("matplotlib")

from llm_datadist.cli.bench.plot import plot


@pytest.mark.slow
def test_a_panel_for_each_path_and_for_its_models(run, tmp_path):
    path = tmp_path / "run.svg"
    plot(run, path)
    drawn = re.findall(r"<!-- (.*?) -->", path.read_text(), re.DOTALL)  # the texts, as comments
    for text in (
        *("tcp", "tcp, KV cache of a prompt", "256 B", "4 KiB"),
        *("llm-datadist (tcp), pull", "llm-datadist (tcp), push", "bare, pull (limit)"),
        *("iperf3 -P 2 (limit)", " 0.6991 ms"),
    ):
        assert text in drawn
    assert not any("NIXL" in text for text in drawn)


def test_nothing_measured_is_an_error(run, tmp_path):
    run.results = []
    with pytest.raises(ValueError, match="nothing was measured: give more --seconds"):
        plot(run, tmp_path / "run.svg")
