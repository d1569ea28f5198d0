"""Tokens of engines with unequal pipeline parallel sizes are those of one engine, in both modes."""

from __future__ import annotations

import pytest

from support.vllm.engines import make_model
from support.vllm.pairs import mixed_prompts, pair_of, tokens_of

TWO = {"pipeline_parallel_size": 2}
PAIRS = {"2 to 1": {"prefill": TWO}, "1 to 2": {"decode": TWO}}


@pytest.fixture(scope="module", params=PAIRS)
def pair(request, tmp_path_factory):
    """Of four layers, in push mode, in which requests without a transfer are pulled."""
    model = make_model(tmp_path_factory.mktemp("model"), layers=4)
    with pair_of(model, mode="push", hold_ms=10_000, **PAIRS[request.param]) as pair:
        yield pair


@pytest.mark.parametrize("mode", ["pull", "push"])
def test_tokens_equal_the_monolithic_run(pair, mode):
    prompts = mixed_prompts(6)
    if mode == "push":
        del prompts["p1"]  # one token is computed, not sent
    pair.ranks()
    pair.reset()
    expected = pair.monolithic(prompts)
    assert pair.monolithic(prompts, engine=pair.decode) == expected
    if mode == "push":
        outputs = pair.pushed(prompts, tag="push-")
    else:
        outputs = pair.decoded(prompts, pair.offers(prompts))
    assert tokens_of(outputs) == expected
    for name, tokens in prompts.items():
        assert outputs[name]["cached"] == len(tokens) - 1, "not fetched but computed"
    assert pair.prefill.ask("settle", 5), "not every worker has its blocks back"
    pair.reset()
