"""Short runs with fixed seeds; the long form is `make chaos`."""

import os

import pytest
from chaos.driver import carry_out

SECONDS = 60.0 if os.environ.get("LDD_LONG") else 8.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (1, {"processes": 3, "disaster_s": 1.0}),
        (2, {"processes": 3, "disaster_s": 0.0, "unlinks": 0.01}),  # mostly changes and transfers
    ],
)
def test_nothing_happens_that_must_not(seed, options):
    run, good = carry_out(seconds=SECONDS, seed=seed, **options)
    assert good, run.violations[:3]
    assert run.counts["pulled bytes"] > 1 << 20
    assert run.counts["pushed bytes"] > 1 << 18
    for call in ("pull_blocks", "pull_cache", "push_blocks", "layerwise", "take", "remap"):
        assert run.counts[f"{call} LLM_SUCCESS"], call
