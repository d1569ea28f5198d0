"""Cases of a benchmark, and the check of every byte."""

import numpy as np
import pytest

from llm_datadist.cli.bench.work import Case, address, buffer, fill, has_arrived, whole_mib

SHAPES = [(256, 1, 64), (4096, 6, 9), (9 << 20, 1, 2)]


def moved(case, seed):
    """Return a buffer into which the case was moved, block by block."""
    source, target = buffer(case.total_bytes), buffer(case.total_bytes)
    fill(source, seed)
    shape = (case.tensors, case.count, case.block_bytes)
    for src, dst in zip(*case.blocks(), strict=True):
        target.reshape(shape)[:, dst] = source.reshape(shape)[:, src]
    return target


@pytest.mark.parametrize(("block_bytes", "tensors", "count"), SHAPES)
def test_all_bytes_in_their_places_have_arrived(block_bytes, tensors, count):
    case = Case("", block_bytes, block_bytes * tensors * count, tensors=tensors)
    assert (case.count, case.pieces) == (count, count * tensors)
    target = moved(case, 5)
    assert has_arrived(target, case, 5)
    assert not has_arrived(target, case, 6)


@pytest.mark.parametrize("at", [0, 4095, -1])
def test_one_wrong_byte_is_found(at):
    case = Case("", 4096, 8 * 4096, tensors=2)
    target = moved(case, 1)
    target[at] ^= 1
    assert not has_arrived(target, case, 1)


def test_blocks_in_the_places_of_others_are_found():
    case = Case("", 512, 512 * 4)
    target = buffer(case.total_bytes)
    fill(target, 1)  # as in the source
    assert not has_arrived(target, case, 1)


def test_a_pattern_has_no_word_twice():
    memory = buffer(64 << 10)
    fill(memory, 3)
    words = memory.view(np.uint64)
    assert len(np.unique(words)) == len(words)


def test_addresses_are_those_of_each_tensor():
    case = Case("", 64, 64 * 2 * 3, tensors=2)
    assert case.addresses(1000, np.array([2, 0])).tolist() == [1128, 1000, 1320, 1192]


@pytest.mark.parametrize(("size", "expected"), [(0, 1), (1.4 * 2**20, 1), (1.6 * 2**20, 2)])
def test_whole_mib(size, expected):
    assert whole_mib(size) == expected << 20


def test_a_buffer_is_aligned_and_empty():
    memory = buffer(8192)
    assert address(memory) % 4096 == 0
    assert not memory.any()
