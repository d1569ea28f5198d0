"""Checks before a transfer: each index of the peer's blocks is in range, however many there are."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from llm_datadist._engine.transfer.cache_checks import remote_blocks
from llm_datadist._errors import LLMException
from llm_datadist._plan import Layout, checked_blocks
from llm_datadist._types import BlocksCacheKey

KEY = BlocksCacheKey(7)
UNITS = 100


def a_layout(num_tensors=2):
    return Layout.of([4096 * (1 + tensor) for tensor in range(num_tensors)], 40 * UNITS, UNITS)


def check(blocks):
    found = SimpleNamespace(cache=SimpleNamespace(layout=a_layout()))
    listed = checked_blocks("pull_blocks", "src_blocks", list(blocks), None)
    return remote_blocks("pull_blocks", found, KEY, a_layout(), listed, "src_blocks")


@pytest.mark.parametrize("count", [0, 1, 2, 8, 9, UNITS])
def test_blocks_of_the_peer_may_be_its_last_ones(count):
    assert check(range(UNITS - count, UNITS)).num_units == UNITS


@pytest.mark.parametrize("count", [1, 2, 8, 9, UNITS])
@pytest.mark.parametrize("place", [0, -1])
def test_a_block_beyond_the_peers_last_one_is_refused(count, place):
    blocks = list(range(count))
    blocks[place] = UNITS
    with pytest.raises(LLMException, match="src_blocks has index 100, the peer's cache has 100"):
        check(blocks)
