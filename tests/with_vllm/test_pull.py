"""Tokens of a prefill and a decode engine are those of one engine, and no block is left behind."""

from __future__ import annotations

import pytest

from support.vllm.engines import BLOCK, prompt
from support.vllm.pairs import changed, mixed_prompts, pair_of, tokens_of


@pytest.fixture(scope="module", params=["auto", "tcp"])
def pair(request, model):
    with pair_of(model, transfer_backend=request.param, hold_ms=3000, lease_ms=6000) as pair:
        yield pair


@pytest.fixture(autouse=True)
def _clean(request):
    """Each test begins without cached prefixes and ends with all blocks free."""
    pair = request.getfixturevalue("pair")
    pair.reset()
    free = [engine.ask("free_blocks") for engine in (pair.prefill, pair.decode)]
    yield
    pair.reset()
    assert [engine.ask("free_blocks") for engine in (pair.prefill, pair.decode)] == free


def test_tokens_equal_the_monolithic_run(pair):
    prompts = mixed_prompts()
    expected = pair.monolithic(prompts)
    assert len({tuple(tokens) for tokens in expected.values()}) == len(prompts)
    offers = pair.offers(prompts)
    outputs = pair.decoded(prompts, offers)
    assert tokens_of(outputs) == expected
    for name, tokens in prompts.items():
        assert outputs[name]["cached"] == len(tokens) - 1, "not fetched but computed"


def test_the_transfer_is_what_decides_the_tokens(pair):
    """Negative control: the blocks of another request give other tokens."""
    prompts = {name: prompt(seed, 200) for seed, name in enumerate("ab")}
    expected = pair.monolithic(prompts)
    offers = pair.offers(prompts)
    forged = {
        "a": changed(offers["b"], prompt=offers["a"]["prompt"]),
        "b": changed(offers["a"], prompt=offers["b"]["prompt"]),
    }
    outputs = tokens_of(pair.decoded(prompts, forged))
    assert outputs["a"] != expected["a"]
    assert outputs["b"] != expected["b"]


def test_swapped_parameters_are_noticed_and_computed(pair):
    prompts = {name: prompt(10 + seed, 200) for seed, name in enumerate("ab")}
    expected = pair.monolithic(prompts)
    offers = pair.offers(prompts)
    outputs = pair.decoded(prompts, {"a": offers["b"], "b": offers["a"]})
    assert tokens_of(outputs) == expected
    assert [outputs[name]["cached"] for name in "ab"] == [0, 0]


def test_prefix_hits_on_both_sides(pair):
    """Shared prefixes: cached on the producer, on the consumer, on both, wholly and in part."""
    head = prompt(77, 5 * BLOCK)
    prompts = {f"h{i}": head + prompt(100 + i, 40 * i) for i in range(4)}
    expected = pair.monolithic(prompts)
    for _ in range(2):  # the second time everything is in the consumer's cache too
        for name, tokens in prompts.items():
            one = {name: tokens}
            assert tokens_of(pair.decoded(one, pair.offers(one))) == {name: expected[name]}
    outputs = pair.decoded(prompts, pair.offers(prompts))
    assert tokens_of(outputs) == expected


def test_an_offer_that_is_used_again_or_too_late_is_computed(pair):
    prompts = {"x": prompt(5, 300)}
    expected = pair.monolithic(prompts)
    offers = pair.offers(prompts)
    assert tokens_of(pair.decoded(prompts, offers)) == expected
    assert pair.prefill.ask("settle", 10)
    assert pair.decode.ask("reset_prefix_cache")
    again = pair.decoded(prompts, offers, tag="again-")
    assert tokens_of(again) == expected
    assert again["x"]["cached"] == 0
    late = pair.offers(prompts, tag="late-")
    assert pair.prefill.ask("settle", 15), "nobody came, but the blocks are held after hold_ms"
    assert pair.decode.ask("reset_prefix_cache")
    outputs = pair.decoded(prompts, late, tag="late-")
    assert tokens_of(outputs) == expected
    assert outputs["x"]["cached"] == 0


def test_blocks_that_were_reused_are_never_taken_for_the_request(pair):
    """The producer gave the blocks to others before the consumer came: it computes."""
    prompts = {"x": prompt(6, 500)}
    expected = pair.monolithic(prompts)
    offers = pair.offers(prompts)
    assert pair.prefill.ask("settle", 15)
    assert pair.prefill.ask("reset_prefix_cache")
    filler = {f"f{i}": prompt(200 + i, 900) for i in range(12)}
    pair.monolithic(filler, 1)
    assert tokens_of(pair.decoded(prompts, offers)) == expected


def test_malformed_parameters_are_computed(pair):
    prompts = {"x": prompt(8, 100)}
    expected = pair.monolithic(prompts)
    offer = pair.offers(prompts)["x"]
    for number, wrong in enumerate(
        [
            changed(offer, key="abc"),
            changed(offer, ranks=[]),
            changed(offer, blocks=[[0]]),
            changed(offer, key=offer["key"] + 256),
            changed(offer, ranks=[{**offer["ranks"][0], "cluster_id": 12345}]),
            changed(offer, ranks=offer["ranks"] * 2),
            {"do_remote_prefill": True},
        ]
    ):
        outputs = pair.decoded(prompts, {"x": wrong}, tag=f"wrong{number}-")
        assert tokens_of(outputs) == expected
        assert pair.decode.ask("reset_prefix_cache")


def test_aborts_on_either_side_leave_nothing(pair):
    prompts = {f"r{i}": prompt(300 + i, 300 + 20 * i) for i in range(8)}
    expected = pair.monolithic(prompts)
    for name, tokens in prompts.items():  # the producer's requests, before and while they run
        pair.prefill.ask("add", "gone-" + name, tokens, 1, {"do_remote_decode": True})
    pair.prefill.ask("abort", [f"gone-{name}" for name in list(prompts)[:6]])
    pair.prefill.ask("steps", 0.3)
    pair.prefill.ask("abort", [f"gone-{name}" for name in prompts])
    assert pair.prefill.ask("settle", 15)  # some were done before; nobody comes for them
    offers = pair.offers(prompts)
    for name, tokens in prompts.items():  # and the consumer's, before and while they load
        pair.decode.ask("add", "gone-" + name, tokens, 8, offers[name])
    pair.decode.ask("abort", [f"gone-{name}" for name in list(prompts)[:3]])
    pair.decode.tell("steps", 0.01)
    pair.decode.answer()
    pair.decode.ask("abort", [f"gone-{name}" for name in prompts])
    assert pair.decode.ask("settle", 15)
    assert pair.prefill.ask("settle", 2), "the consumer has not given the blocks back"
    pair.reset()
    outputs = pair.decoded(prompts, pair.offers(prompts, tag="n-"), tag="n-")
    assert tokens_of(outputs) == expected
