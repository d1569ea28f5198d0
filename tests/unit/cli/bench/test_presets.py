"""Presets: the arithmetic of the KV caches of public models."""

import pytest

from llm_datadist.cli.bench.presets import PRESETS, preset


@pytest.mark.parametrize(
    ("name", "tp", "tensors", "block_bytes", "token_kib"),
    [
        ("llama-3.1-8b", 1, 64, 32 << 10, 128),
        ("llama-3.1-70b", 1, 160, 32 << 10, 320),
        ("llama-3.1-70b", 8, 160, 4 << 10, 40),
        ("llama-3.1-70b", 16, 160, 4 << 10, 40),  # two ranks have each head
        ("qwen2.5-7b", 1, 56, 16 << 10, 56),
        ("deepseek-v3", 1, 61, 64 * 576 * 2, 68.625),
        ("deepseek-v3", 8, 61, 64 * 576 * 2, 68.625),  # every rank has the latent rows
    ],
)
def test_bytes_of_one_rank(name, tp, tensors, block_bytes, token_kib):
    found = preset(name).with_tp(tp)
    assert (found.tensors, found.block_bytes) == (tensors, block_bytes)
    assert found.token_bytes == token_kib * 1024


def test_a_prompt_takes_whole_blocks():
    case = preset("llama-3.1-8b").case(33)
    assert (case.count, case.tensors, case.block_bytes) == (3, 64, 32 << 10)
    assert case.total_bytes == 3 * 64 * (32 << 10)


def test_at_least_five_models_and_one_with_a_latent_cache():
    assert len(PRESETS) >= 5
    assert any(each.is_latent for each in PRESETS.values())
    assert all(each.block_bytes % 8 == 0 for each in PRESETS.values())


def test_what_cannot_be_is_named_with_the_remedy():
    with pytest.raises(ValueError, match=r"--preset gpt-0: unknown; give one of llama-3.1-8b"):
        preset("gpt-0")
    with pytest.raises(ValueError, match=r"--tp 3: llama-3.1-8b has 8 KV heads; give a divisor"):
        preset("llama-3.1-8b").with_tp(3)
