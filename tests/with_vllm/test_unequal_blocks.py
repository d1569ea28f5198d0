"""Tokens of engines with unequal block sizes are those of one engine, where blocks are rows."""

from __future__ import annotations

import pytest

from support.vllm.engines import make_deepseek
from support.vllm.pairs import mixed_prompts, pair_of, tokens_of

torch = pytest.importorskip("torch")
AMX = torch.cpu._is_amx_tile_supported()
LATENTS = {"dtype": "bfloat16"}
PAIRS = {"32 to 64": (32, 64), "64 to 32": (64, 32)}


@pytest.fixture(scope="module", params=PAIRS)
def pair(request, tmp_path_factory):
    if not AMX:
        pytest.skip("without AMX, vLLM fixes the block size of latents")
    producer, consumer = ({**LATENTS, "block_size": size} for size in PAIRS[request.param])
    model = make_deepseek(tmp_path_factory.mktemp("latents"))
    with pair_of(model, prefill=producer, decode=consumer, hold_ms=20_000) as pair:
        yield pair


def test_tokens_equal_the_monolithic_run(pair):
    prompts = mixed_prompts(5)
    expected = pair.monolithic(prompts)
    assert pair.monolithic(prompts, engine=pair.decode) == expected
    pair.reset()
    for round_ in ("one-", "two-"):  # in the second round, prefixes are cached
        outputs = pair.decoded(prompts, pair.offers(prompts, round_), tag=round_)
        assert tokens_of(outputs) == expected
        for name, tokens in prompts.items():
            assert outputs[name]["cached"] == len(tokens) - 1, "not fetched but computed"
        assert pair.prefill.ask("settle", 5)
    pair.reset()
