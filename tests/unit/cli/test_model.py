"""The demo's model against plain implementations of the same formulas, token by token."""

from __future__ import annotations

import numpy as np
import pytest

from llm_datadist.cli.demo.generation import Generation, decode_step, greedy
from llm_datadist.cli.demo.model import (
    Llama,
    ModelShape,
    attention,
    rms_norm,
    rotary_table,
    rotate,
    silu,
)
from llm_datadist.cli.demo.paged_kv import BlockPool, PagedKvCache, blocks_for
from llm_datadist.cli.demo.reference import generate

SMALL = ModelShape(layers=2, hidden=64, heads=4, kv_heads=2, feed_forward=96)
MIDDLE = ModelShape(layers=3, hidden=256, heads=4, feed_forward=512)
BLOCK_SIZE = 4


@pytest.fixture(scope="module")
def model():
    return Llama(SMALL, seed=1)


@pytest.fixture
def cache():
    return PagedKvCache(SMALL.layers, 64, BLOCK_SIZE, SMALL.kv_heads, SMALL.head_dim)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def prompt_of(length, seed=0):
    return np.random.default_rng(seed).integers(0, 256, length).tolist()


def plain_attention(queries, keys, values):
    """One query, one head at a time, in float64."""
    count, heads, head_dim = queries.shape
    group = heads // keys.shape[1]
    result = np.zeros((count, heads, head_dim))
    offset = len(keys) - count
    for token in range(count):
        seen = offset + token + 1
        for head in range(heads):
            k = keys[:seen, head // group].astype(np.float64)
            v = values[:seen, head // group].astype(np.float64)
            scores = k @ queries[token, head].astype(np.float64) / np.sqrt(head_dim)
            weights = np.exp(scores - scores.max())
            result[token, head] = weights / weights.sum() @ v
    return result


def plain_rotation(head, position, theta):
    """Each pair (i, i + half) turned as a complex number."""
    half = len(head) // 2
    result = np.empty(len(head))
    for i in range(half):
        turned = complex(head[i], head[i + half]) * np.exp(
            1j * position * theta ** (-2 * i / len(head))
        )
        result[i], result[i + half] = turned.real, turned.imag
    return result


@pytest.mark.parametrize(
    ("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)], ids=["multi-head", "grouped", "multi-query"]
)
@pytest.mark.parametrize("count", [1, 7, 300])
def test_attention_equals_plain_attention(heads, kv_heads, count):
    queries = noise(count, heads, 8, seed=1)
    keys, values = noise(count, kv_heads, 8, seed=2), noise(count, kv_heads, 8, seed=3)
    result = attention(queries, keys, values, first_position=0)
    np.testing.assert_allclose(result, plain_attention(queries, keys, values), atol=2e-5)


def test_attention_of_later_tokens_sees_all_earlier_ones():
    queries = noise(3, 4, 8, seed=1)
    keys, values = noise(10, 2, 8, seed=2), noise(10, 2, 8, seed=3)
    result = attention(queries, keys, values, first_position=7)
    np.testing.assert_allclose(result, plain_attention(queries, keys, values), atol=2e-5)


def test_rotation_equals_complex_rotation():
    shape = ModelShape(hidden=32, heads=4)
    positions = np.array([0, 1, 17, 4000])
    heads = noise(4, 3, 8)
    result = rotate(heads, rotary_table(shape, positions))
    for token, position in enumerate(positions):
        for head in range(3):
            plain = plain_rotation(heads[token, head], position, shape.rope_theta)
            np.testing.assert_allclose(result[token, head], plain, atol=1e-3)


def test_rotation_keeps_scores_a_function_of_distance():
    shape = ModelShape(hidden=16, heads=1)
    query, key = noise(1, 1, 16, seed=1), noise(1, 1, 16, seed=2)

    def score(query_position, key_position):
        turned = [
            rotate(head, rotary_table(shape, np.array([position])))
            for head, position in ((query, query_position), (key, key_position))
        ]
        return float(np.sum(turned[0] * turned[1]))

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-3)


def test_norm_and_activation():
    values = noise(3, 16) * 5
    normed = rms_norm(values, np.ones(16, np.float32), 1e-6)
    np.testing.assert_allclose(np.mean(normed**2, axis=1), 1.0, rtol=1e-4)
    wide = np.array([-200.0, -1.0, 0.0, 1.0, 200.0], np.float32)
    expected = [wide[i] / (1 + np.exp(-float(wide[i]))) for i in range(5)]
    np.testing.assert_allclose(silu(wide), expected, atol=1e-6)


def test_decoding_over_the_cache_equals_prefilling_it_all(model, cache):
    tokens = prompt_of(21)
    table = np.array(BlockPool(range(64), seed=3).take(6))
    model.prefill(tokens[:13], cache, table)
    for position in range(13, 21):
        logits = model.decode([tokens[position]], [position], cache, [table])[0]
        whole = PagedKvCache(SMALL.layers, 6, BLOCK_SIZE, SMALL.kv_heads, SMALL.head_dim)
        expected = model.prefill(tokens[: position + 1], whole, np.arange(6))
        np.testing.assert_allclose(logits, expected, atol=2e-4)


def test_block_ids_do_not_matter_bit_for_bit(model):
    results = []
    for ids in ([0, 1, 2, 3, 4], [9, 3, 61, 0, 22]):
        cache = PagedKvCache(SMALL.layers, 64, BLOCK_SIZE, SMALL.kv_heads, SMALL.head_dim)
        results.append(model.prefill(prompt_of(18), cache, np.array(ids)))
    np.testing.assert_array_equal(results[0], results[1])


def test_a_slot_does_not_depend_on_the_others_bit_for_bit(model, cache):
    pool = BlockPool(range(64), seed=0)
    tables = [np.array(pool.take(5)) for _ in range(3)]
    for seed, table in enumerate(tables):
        model.prefill(prompt_of(10 + seed, seed), cache, table)
    together = model.decode([1, 2, 3], [10, 11, 12], cache, tables)
    for slot in range(3):
        alone_tables = [table if i == slot else None for i, table in enumerate(tables)]
        alone = model.decode(
            [1, 2, 3] if slot == 1 else [slot + 1] * 3, [10 + slot] * 3, cache, alone_tables
        )
        np.testing.assert_array_equal(alone[slot], together[slot])


def test_keys_and_values_are_complete_when_a_layer_is_reported(model, cache):
    table = np.array([5, 1, 8])
    seen = {}

    def kv_ready(layer):
        seen[layer] = [tensor[table].copy() for tensor in cache.tensors[2 * layer : 2 * layer + 2]]

    model.prefill(prompt_of(12), cache, table, kv_ready)
    assert list(seen) == [0, 1]
    for layer, (keys, values) in seen.items():
        np.testing.assert_array_equal(keys, cache.tensors[2 * layer][table])
        np.testing.assert_array_equal(values, cache.tensors[2 * layer + 1][table])


def test_generation_depends_on_prompt_and_wanders():
    model = Llama(MIDDLE, seed=0)
    shape = model.shape
    outputs = []
    for seed in range(2):
        cache = PagedKvCache(shape.layers, 10, 16, shape.kv_heads, shape.head_dim)
        generation = generate(
            model, cache, BlockPool(range(10), 0), prompt_of(100, seed), 16, slot=0, slots=2
        )
        outputs.append(generation.tokens)
    assert outputs[0] != outputs[1]
    assert min(len(set(tokens)) for tokens in outputs) >= 8


@pytest.mark.parametrize("corrupted", [0, 3, 6])
def test_one_wrong_block_changes_the_tokens(corrupted):
    model = Llama(MIDDLE, seed=0)
    shape, prompt = model.shape, prompt_of(110)
    blocks = blocks_for(len(prompt) + 16, 16)

    def tokens(corrupt):
        cache = PagedKvCache(shape.layers, blocks, 16, shape.kv_heads, shape.head_dim)
        table = np.arange(blocks)
        first = greedy(model.prefill(prompt, cache, table))
        if corrupt is not None:
            cache.fill([corrupt], np.random.default_rng(0))
        generation = Generation(len(prompt), first, table)
        for _ in range(8):
            decode_step(model, cache, {0: generation}, 1)
        return generation.tokens

    assert tokens(None) != tokens(corrupted)


def test_sizes():
    shape = ModelShape()
    assert shape.head_dim == 64
    assert shape.kv_bytes_per_token == 8 * 2 * 2 * 64 * 4
    model = Llama(SMALL, seed=0)
    arrays = [model._embedding, model._head, model._final_norm]
    arrays += [array for layer in model._layers for array in layer]
    assert sum(array.size for array in arrays) == SMALL.parameters
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}
