"""Models with states and attention: a consumer continues from the producer's state."""

from __future__ import annotations

import pytest

from support.vllm.engines import make_granite, prompt
from support.vllm.pairs import pair_of, tokens_of

BLOCK = 128
LENGTHS = [1, 2, 3, 5, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 2, 2 * BLOCK, 2 * BLOCK + 1, 300, 800]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_granite(tmp_path_factory.mktemp("states"))


@pytest.fixture(scope="module", params=["align", "none"])
def pair(request, model):
    settings = {"block_size": BLOCK, "enable_prefix_caching": request.param == "align"}
    with pair_of(model, prefill=settings, decode=settings, hold_ms=10_000) as made:
        made.caches = request.param == "align"
        yield made


def prompts_of(pair, seed):
    """Prompts; with its prefix cache, stock vLLM for CPU fails on such prompts above a block."""
    lengths = [length for length in LENGTHS if not pair.caches or length <= BLOCK]
    return {f"p{length}": prompt(1000 * seed + length, length) for length in lengths}


def one_by_one(prompts, call):
    """Results of a call for each prompt alone, so that equal batches are compared."""
    results = {}
    for name, tokens in prompts.items():
        results |= call({name: tokens})
    return results


def test_tokens_are_those_of_one_engine(pair):
    prompts = prompts_of(pair, 1)
    expected = one_by_one(prompts, pair.monolithic)
    outputs = one_by_one(prompts, lambda one: pair.decoded(one, pair.offers(one)))
    assert tokens_of(outputs) == expected
    fetched = {name: output["cached"] for name, output in outputs.items()}
    assert fetched == {
        name: len(tokens) - 1 if len(tokens) > 2 else 0 for name, tokens in prompts.items()
    }
    pair.reset()


def test_a_prompt_whose_offer_is_used_is_computed_from_its_start(pair):
    one = {"again": prompt(77, BLOCK - 9)}
    expected = pair.monolithic(one)
    offers = pair.offers(one)
    assert tokens_of(pair.decoded(one, offers)) == expected
    pair.reset()
    outputs = pair.decoded(one, offers, tag="late-")
    assert tokens_of(outputs) == expected
    assert outputs["again"]["cached"] == 0
    pair.reset()
