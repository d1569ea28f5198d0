"""Pulls by every kind of key, what they consume, and their offsets (api.md 8)."""

import numpy as np
import pytest

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LLMRole,
)
from support.first_generation import cleared, desc_of, filled, link, values
from support.instances import failing

BYTES = CacheDesc(2, [2, 16], DataType.DT_UINT8)


@pytest.fixture
def target(managers):
    return cleared(managers[1].allocate_cache(desc_of()))


def test_a_pull_by_key_consumes_it(managers, target):
    """And a second pull finds nothing."""
    prompt, decoder = managers
    keys = [CacheKey(1, number) for number in range(4)]
    source = filled(prompt.allocate_cache(desc_of(), keys), 10)
    prompt.deallocate_cache(source)
    for slot in (2, 0, 3, 1):
        decoder.pull_cache(keys[slot], target, slot)
        with failing("LLM_KV_CACHE_NOT_EXIST", "pull_cache", f"req_id={slot}", peer=1):
            decoder.pull_cache(keys[slot], target, slot)
    assert values(target) == [10, 11, 12, 13]


def test_a_key_outlives_deallocate_cache_only(managers, target):
    """The id is gone; the key keeps the memory."""
    prompt, decoder = managers
    source = filled(prompt.allocate_cache(desc_of(), [CacheKey(1, 1)]), 5)
    by_id = CacheKeyByIdAndIndex(1, source.cache_id)
    prompt.deallocate_cache(source)
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_cache", peer=1):
        decoder.pull_cache(by_id, target)
    decoder.pull_cache(CacheKey(1, 1), target)
    assert values(target)[0] == 5


def test_a_pull_of_some_bytes_consumes_too(managers, target):
    prompt, decoder = managers
    source = prompt.allocate_cache(desc_of(), [CacheKey(1, 1), CacheKey(1, 2)])
    prompt.deallocate_cache(source)
    for number, options in ((1, {"size": 8}), (2, {"src_cache_offset": 8, "size": 8})):
        decoder.pull_cache(CacheKey(1, number), target, **options)
        with failing("LLM_KV_CACHE_NOT_EXIST", "pull_cache"):
            decoder.pull_cache(CacheKey(1, number), target)


def test_a_failed_pull_consumes_nothing(managers, target):
    prompt, decoder = managers
    key = CacheKey(1, 6)
    filled(source := prompt.allocate_cache(desc_of(), [key]), 70)
    prompt.deallocate_cache(source)
    for options in ({"size": 513}, {"batch_index": 4}, {"src_cache_offset": 1}):
        with failing("LLM_PARAM_INVALID", "pull_cache"):
            decoder.pull_cache(key, target, **options)
    decoder.pull_cache(key, target)
    assert values(target)[0] == 70


def test_a_pull_by_id_consumes_nothing(managers, target):
    prompt, decoder = managers
    source = filled(prompt.allocate_cache(desc_of(), [CacheKey(1, 1)]), 40)
    for slot in (3, 3, 0):
        decoder.pull_cache(CacheKeyByIdAndIndex(1, source.cache_id, slot), target, slot)
    assert values(target) == [40, 0, 0, 43]
    decoder.pull_cache(CacheKey(1, 1), target, 1)
    assert values(target)[1] == 40


def test_a_removed_key(managers, target):
    prompt, decoder = managers
    source = prompt.allocate_cache(desc_of(), [CacheKey(1, 8)])
    prompt.remove_cache_key(CacheKey(1, 8))
    prompt.remove_cache_key(CacheKey(1, 8))
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_cache", peer=1):
        decoder.pull_cache(CacheKey(1, 8), target)
    decoder.pull_cache(CacheKeyByIdAndIndex(1, source.cache_id), target)


@pytest.mark.parametrize(
    ("options", "src", "dst", "count"),
    [
        ({}, 0, 0, 16),
        ({"src_cache_offset": 0, "dst_cache_offset": 0}, 0, 0, 16),
        ({"size": 5}, 0, 0, 5),
        ({"src_cache_offset": 3, "size": 5}, 3, 0, 5),
        ({"dst_cache_offset": 3, "size": 5}, 0, 3, 5),
        ({"src_cache_offset": 11, "dst_cache_offset": 2, "size": 5}, 11, 2, 5),
        ({"dst_cache_offset": 6}, 0, 6, 10),
        ({"src_cache_offset": 6, "dst_cache_offset": 6}, 6, 6, 10),
        ({"src_cache_offset": 2, "dst_cache_offset": 15}, 2, 15, 1),
    ],
)
def test_offsets_are_bytes_of_the_slot(managers, options, src, dst, count):
    """Size -1 = the local slot's bytes behind dst_cache_offset; of every tensor."""
    prompt, decoder = managers
    source, target = prompt.allocate_cache(BYTES), decoder.allocate_cache(BYTES)
    for tensor in range(2):
        source.tensor(tensor)[:] = np.arange(32).reshape(2, 16) + 100 * tensor
        target.tensor(tensor)[:] = 255
    decoder.pull_cache(CacheKeyByIdAndIndex(1, source.cache_id, 1), target, 0, **options)
    for tensor in range(2):
        expected = np.full((2, 16), 255, np.uint8)
        expected[0, dst : dst + count] = source.tensor(tensor)[1, src : src + count]
        assert (target.tensor(tensor) == expected).all()


@pytest.mark.parametrize(
    "options",
    [
        {"src_cache_offset": 1},
        {"src_cache_offset": 16, "size": 1},
        {"src_cache_offset": 2**63 - 1, "size": 1},
        {"dst_cache_offset": 16},
        {"dst_cache_offset": 17},
        {"dst_cache_offset": 12, "size": 5},
        {"src_cache_offset": 12, "size": 5},
        {"size": 17},
        {"size": 0},
        {"size": -2},
    ],
)
def test_ranges_beyond_a_slot(managers, options):
    prompt, decoder = managers
    source, target = prompt.allocate_cache(BYTES), decoder.allocate_cache(BYTES)
    with failing("LLM_PARAM_INVALID", "pull_cache", "size"):
        decoder.pull_cache(CacheKeyByIdAndIndex(1, source.cache_id, 0), target, 0, **options)


def test_layers(managers):
    """The keywords of 7.1; a pull of some layers leaves the key."""
    prompt, decoder = managers
    key = CacheKey(1, 9)
    source = prompt.allocate_cache(desc_of(tensors=4), [key])
    target = decoder.allocate_cache(desc_of(tensors=2))
    for tensor in range(4):
        source.tensor(tensor)[:] = tensor
    prompt.deallocate_cache(source)
    decoder.pull_cache(key, target, src_layer_range=range(1, 2))
    assert [int(target.tensor(index)[0, 0]) for index in range(2)] == [2, 3]
    prompt.remove_cache_key(key)


def test_blocks_to_blocks(managers):
    prompt, decoder = managers
    source = filled(prompt.allocate_blocks_cache(desc_of(8), BlocksCacheKey(1)), 60)
    target = cleared(decoder.allocate_blocks_cache(desc_of(4)))
    decoder.pull_blocks(
        prompt_cache_key=BlocksCacheKey(1),
        decoder_kv_cache=target,
        prompt_blocks=[7, 2],
        decoder_blocks=(3, 0),
    )
    assert values(target) == [62, 0, 0, 67]
    decoder.pull_blocks(BlocksCacheKey(1), target, [], [])
    del source


def test_a_slot_to_blocks(managers):
    """By id, which consumes nothing, and by key."""
    prompt, decoder = managers
    source = prompt.allocate_cache(desc_of(2, words=128), [CacheKey(1, 1)])
    for tensor in range(2):
        source.tensor(tensor)[:] = np.arange(256).reshape(2, 128) // 64
    target = cleared(decoder.allocate_blocks_cache(desc_of(4, words=64)))
    for key, expected in (
        (CacheKeyByIdAndIndex(1, source.cache_id, 1), [3, 0, 0, 2]),
        (CacheKey(1, 1), [1, 0, 0, 0]),
    ):
        decoder.pull_blocks(key, target, [], [3, 0])
        assert values(target) == expected
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_blocks", peer=1):
        decoder.pull_blocks(CacheKey(1, 1), target, [], [3, 0])


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (([0, 1], [0]), "prompt_blocks"),
        (([0], [4]), "decoder_blocks"),
        (([0, 1], [2, 2]), "decoder_blocks"),
        (([4], [0]), "prompt_blocks"),
    ],
)
def test_wrong_blocks_are_named(managers, arguments, name):
    prompt, decoder = managers
    source = prompt.allocate_blocks_cache(desc_of(), BlocksCacheKey(1))
    target = decoder.allocate_blocks_cache(desc_of())
    with failing("LLM_PARAM_INVALID", "pull_blocks", name):
        decoder.pull_blocks(BlocksCacheKey(1), target, *arguments)
    with failing("LLM_PARAM_INVALID", "pull_blocks", "decoder_kv_cache"):
        decoder.pull_blocks(BlocksCacheKey(1), decoder.allocate_cache(desc_of()), [0], [0])
    with failing("LLM_PARAM_INVALID", "pull_blocks", "prompt_blocks"):
        decoder.pull_blocks(CacheKeyByIdAndIndex(1, source.cache_id), target, [0], [0])
    with pytest.raises(ValueError, match="prompt_blocks"):
        decoder.pull_blocks(BlocksCacheKey(1), target, [-1], [0])


@pytest.mark.parametrize("cluster_id", [0, 7, 2**64 - 1])
def test_equal_ids_on_both_sides(instance, cluster_id):
    """The keys and the unlink mean the linked peer."""
    prompt = instance(LLMRole.PROMPT, cluster_id)
    decoder = instance(LLMRole.DECODER, cluster_id)
    info = link(decoder, prompt)
    key = CacheKey(prompt_cluster_id=cluster_id, req_id=1)
    source = filled(prompt.kv_cache_manager.allocate_cache(desc_of(), [key]), 9)
    target = decoder.kv_cache_manager.allocate_cache(desc_of())
    pull = decoder.kv_cache_manager.pull_cache
    pull(CacheKeyByIdAndIndex(cluster_id, source.cache_id, 2), target, 0)
    pull(key, target, 1)
    assert values(target)[:2] == [11, 9]
    info.remote_cluster_id = cluster_id
    decoder.unlink_clusters([info])
    with failing("LLM_NOT_YET_LINK", "pull_cache", peer=cluster_id):
        pull(CacheKeyByIdAndIndex(cluster_id, source.cache_id), target)


def test_over_lanes(instance):
    """Between hosts the owner's threads serve the pulls."""
    prompt = instance(LLMRole.PROMPT, 1, transfer_backend="tcp")
    decoder = instance(LLMRole.DECODER, 2, transfer_backend="tcp")
    link(decoder, prompt)
    source = filled(prompt.kv_cache_manager.allocate_cache(desc_of(), [CacheKey(1, 1)]), 4)
    prompt.kv_cache_manager.deallocate_cache(source)
    target = decoder.kv_cache_manager.allocate_cache(desc_of())
    decoder.kv_cache_manager.pull_cache(CacheKey(1, 1), target, 3, src_cache_offset=0)
    assert values(target)[3] == 4
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_cache"):
        decoder.kv_cache_manager.pull_cache(CacheKey(1, 1), target)
