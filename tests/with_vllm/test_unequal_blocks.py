"""Unequal block sizes, where blocks are rows: the consumer cannot tell them from equal ones."""

from __future__ import annotations

import pytest

from support.vllm.engines import make_deepseek
from support.vllm.pairs import mixed_prompts, pair_of, tokens_of

torch = pytest.importorskip("torch")


def decoded(model, src_size, dst_size):
    """Tokens after pulls, one prompt at a time, because what AMX computes depends on the batch."""
    producer, consumer = (
        {"dtype": "bfloat16", "block_size": size} for size in (src_size, dst_size)
    )
    tokens = {}
    with pair_of(model, prefill=producer, decode=consumer, hold_ms=10_000) as pair:
        for name, prompt in mixed_prompts(5).items():
            outputs = pair.decoded({name: prompt}, pair.offers({name: prompt}))
            assert outputs[name]["cached"] == len(prompt) - 1, "not fetched but computed"
            tokens |= tokens_of(outputs)
        pair.reset()
    return tokens


@pytest.mark.skipif(
    not torch.cpu._is_amx_tile_supported(),
    reason="without AMX, vLLM for CPU fixes the block size of latents",
)
@pytest.mark.parametrize(("src_size", "dst_size"), [(32, 64), (64, 32)])
def test_tokens_do_not_depend_on_the_block_sizes(tmp_path, src_size, dst_size):
    """They are compared with those of equal engines, not with those of one engine.

    With 16-bit types, an engine that computes a prompt's last token alone rounds otherwise.
    """
    model = make_deepseek(tmp_path / "latents")
    assert decoded(model, src_size, dst_size) == decoded(model, dst_size, dst_size)
