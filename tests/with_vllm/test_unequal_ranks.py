"""Tokens of engines with unequal tensor parallel sizes are those of one engine."""

from __future__ import annotations

import pytest

from support.vllm.engines import make_model, prompt
from support.vllm.pairs import mixed_prompts, pair_of, tokens_of

RANKS = {"tensor_parallel_size": 2}


@pytest.fixture(scope="module")
def replicating(tmp_path_factory):
    """A model with one KV head, which every rank holds."""
    return make_model(tmp_path_factory.mktemp("replicating"), kv_heads=1)


@pytest.mark.parametrize("name", ["model", "replicating"])
@pytest.mark.parametrize("sizes", [{"prefill": RANKS}, {"decode": RANKS}], ids=["2 to 1", "1 to 2"])
def test_tokens_equal_the_monolithic_run(request, name, sizes):
    with pair_of(request.getfixturevalue(name), hold_ms=30_000, **sizes) as pair:
        prompts = mixed_prompts(3)
        expected = pair.monolithic(prompts)
        assert pair.monolithic(prompts, engine=pair.decode) == expected
        pair.reset()
        for round_ in ("one-", "two-"):  # in the second round, prefixes are cached
            outputs = pair.decoded(prompts, pair.offers(prompts, round_), tag=round_)
            assert tokens_of(outputs) == expected
            for each, tokens in prompts.items():
                assert outputs[each]["cached"] == len(tokens) - 1, "not fetched but computed"
            assert pair.prefill.ask("settle", 5), "not every rank has its blocks back"


def test_the_transfer_is_what_decides_the_tokens(model):
    """Negative control: the blocks of another request give other tokens."""
    with pair_of(model, prefill=RANKS) as pair:
        prompts = {name: prompt(seed, 200) for seed, name in enumerate("ab")}
        expected = pair.monolithic(prompts)
        offers = pair.offers(prompts)
        forged = {name: {**offers[name], "blocks": offers[other]["blocks"],
                         "key": offers[other]["key"]}
                  for name, other in ("ab", "ba")}  # fmt: skip
        outputs = tokens_of(pair.decoded(prompts, forged))
        assert outputs["a"] != expected["a"]
        assert outputs["b"] != expected["b"]
        swapped = pair.offers(prompts, "swapped-")
        for each in swapped.values():
            each["ranks"] = each["ranks"][::-1]
        assert pair.decode.ask("reset_prefix_cache")
        outputs = pair.decoded(prompts, swapped, tag="swapped-")
        assert tokens_of(outputs) == expected
        assert [outputs[name]["cached"] for name in "ab"] == [0, 0]
