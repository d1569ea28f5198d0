"""Tokens of engines with unequal tensor parallel sizes are those of one engine, in both modes."""

from __future__ import annotations

import pytest

from support.vllm.engines import make_model, prompt
from support.vllm.pairs import changed, mixed_prompts, pair_of, tokens_of

TWO = {"tensor_parallel_size": 2}
PAIRS = {
    "2 to 1": (2, {"prefill": TWO}),
    "1 to 2": (2, {"decode": TWO}),
    "2 to 1, one KV head": (1, {"prefill": TWO}),
    "1 to 2, one KV head": (1, {"decode": TWO}),
}


@pytest.fixture(scope="module", params=PAIRS)
def pair(request, tmp_path_factory):
    """In push mode, in which requests without a transfer are pulled."""
    kv_heads, sizes = PAIRS[request.param]
    model = make_model(tmp_path_factory.mktemp("model"), kv_heads=kv_heads)
    with pair_of(model, mode="push", hold_ms=10_000, **sizes) as pair:
        yield pair


@pytest.fixture(autouse=True)
def _clean(request):
    """Each test begins without cached prefixes and ends with all blocks free."""
    pair = request.getfixturevalue("pair")
    pair.ranks()
    pair.reset()
    free = [engine.ask("free_blocks") for engine in (pair.prefill, pair.decode)]
    yield
    pair.reset()
    assert [engine.ask("free_blocks") for engine in (pair.prefill, pair.decode)] == free


def expected_of(pair, prompts):
    """Tokens of either engine alone, which are equal."""
    expected = pair.monolithic(prompts)
    assert pair.monolithic(prompts, engine=pair.decode) == expected
    return expected


def test_pulled_tokens_equal_the_monolithic_run(pair):
    prompts = mixed_prompts(3)
    expected = expected_of(pair, prompts)
    outputs = pair.decoded(prompts, pair.offers(prompts))
    assert tokens_of(outputs) == expected
    for name, tokens in prompts.items():
        assert outputs[name]["cached"] == len(tokens) - 1, "not fetched but computed"
    assert pair.prefill.ask("settle", 5), "not every rank has its blocks back"


def test_pushed_tokens_equal_the_monolithic_run(pair):
    prompts = mixed_prompts(4)
    del prompts["p1"]  # one token is computed, not sent
    expected = expected_of(pair, prompts)
    outputs = pair.pushed(prompts, tag="push-")
    assert tokens_of(outputs) == expected
    for name, tokens in prompts.items():
        assert outputs[name]["cached"] == len(tokens) - 1, "not sent but computed"
    assert pair.prefill.ask("settle", 5), "not every rank has its blocks back"


def test_the_transfer_is_what_decides_the_tokens(pair):
    """Negative control: the blocks of another request give other tokens."""
    prompts = {name: prompt(seed, 200) for seed, name in enumerate("ab")}
    expected = expected_of(pair, prompts)
    offers = pair.offers(prompts, "control-")
    forged = {
        name: changed(offers[other], prompt=offers[name]["prompt"]) for name, other in ("ab", "ba")
    }
    outputs = tokens_of(pair.decoded(prompts, forged, tag="control-"))
    assert outputs["a"] != expected["a"]
    assert outputs["b"] != expected["b"]
