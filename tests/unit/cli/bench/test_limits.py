"""What the limits of the machine do."""

import pytest

from llm_datadist.cli.bench import limits
from llm_datadist.cli.bench.limits import iperf3, shares


@pytest.mark.parametrize("pieces", [1, 2, 3, 1024, 2048, 5000, 100_000])
@pytest.mark.parametrize("num_threads", [1, 2, 8])
def test_pieces_are_dealt_evenly_in_calls_that_the_kernel_takes(pieces, num_threads):
    dealt = shares(pieces, num_threads)
    assert len(dealt) == num_threads
    calls = [call for part in dealt for call in part]
    assert sorted(at for first, end in calls for at in range(first, end)) == list(range(pieces))
    assert max(end - first for first, end in calls) <= 1024
    loads = [sum(end - first for first, end in part) for part in dealt]
    assert max(loads) - min(loads) <= 1024 * (pieces > 1024 * num_threads) + 1


def test_a_program_that_does_not_end_is_given_up(tmp_path, monkeypatch):
    program = tmp_path / "iperf3"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(limits, "_IPERF_SPARE_S", -0.9)
    with pytest.raises(RuntimeError, match=r"iperf3 -c .*: it did not end within"):
        iperf3()
