"""Blocks, block tables and the pool of free blocks."""

from __future__ import annotations

import numpy as np
import pytest

from llm_datadist.cli.demo.paged_kv import BlockPool, PagedKvCache, blocks_for


def small_cache():
    return PagedKvCache(layers=2, num_blocks=8, block_size=4, kv_heads=2, head_dim=3)


def test_what_is_written_is_gathered():
    cache = small_cache()
    table = np.array([6, 2, 5])
    source = np.random.default_rng(0)
    keys, values = source.standard_normal((2, 11, 2, 3)).astype(np.float32)
    cache.write(1, table, 0, keys[:7], values[:7])
    cache.write(1, table, 7, keys[7:], values[7:])
    gathered = cache.gather(1, table, 11)
    np.testing.assert_array_equal(gathered[0], keys)
    np.testing.assert_array_equal(gathered[1], values)
    np.testing.assert_array_equal(cache.tensors[2][2], keys[4:8])
    assert not any(tensor.any() for tensor in cache.tensors[:2])
    untouched = [block for block in range(8) if block not in table]
    assert not cache.tensors[2][untouched].any()


def test_addresses_and_sizes():
    cache = small_cache()
    assert len(cache.addresses) == 4
    assert cache.addresses[1] == cache.tensors[1].ctypes.data
    assert cache.bytes_per_block == 4 * (4 * 2 * 3 * 4)


def test_checksums_notice_a_change_of_one_bit():
    cache = small_cache()
    cache.fill([1, 2], np.random.default_rng(0))
    before = cache.checksums([1, 2])
    cache.tensors[0][3] = 1.0
    assert cache.checksums([1, 2]) == before
    cache.tensors[3].view(np.uint32)[2, 1, 1, 1] ^= 1
    assert cache.checksums([1, 2]) != before


@pytest.mark.parametrize(("tokens", "blocks"), [(1, 1), (16, 1), (17, 2), (32, 2)])
def test_blocks_for(tokens, blocks):
    assert blocks_for(tokens, 16) == blocks


def test_pool_hands_out_each_block_once():
    pool = BlockPool(range(10, 20), seed=0)
    taken = pool.take(6) + pool.take(4)
    assert sorted(taken) == list(range(10, 20))
    assert taken != sorted(taken)
    with pytest.raises(MemoryError, match="has 0 free blocks, 1 are needed"):
        pool.take(1)
    pool.give_back([12])
    assert pool.take(1) == [12]
    assert pool.take(0) == []
