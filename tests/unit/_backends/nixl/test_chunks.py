"""Chunks cover what was asked for, once, and fit their slot."""

import numpy as np
import pytest

from llm_datadist._backends.nixl.chunks import chunks
from llm_datadist._backends.outcomes import Code, Outcome


def u64(*values):
    return np.array(values, np.uint64)


def test_chunks_cut_and_fill():
    found = list(chunks(u64(0, 100, 200), u64(1000, 1100, 1200), u64(10, 25, 5), 16))
    assert [chunk.total_bytes for chunk in found] == [10, 16, 14]
    assert [list(chunk.origin) for chunk in found] == [[0], [1], [1, 2]]
    assert [list(chunk.local) for chunk in found] == [[0], [100], [116, 200]]
    assert [list(chunk.remote) for chunk in found] == [[1000], [1100], [1116, 1200]]


@pytest.mark.parametrize("limit", [1, 7, 64, 10_000])
def test_chunks_cover_each_byte_once(limit):
    chance = np.random.default_rng(limit)
    length = chance.integers(0, 50, 40).astype(np.uint64)
    local = np.cumsum(length) - length
    remote = local + np.uint64(10_000)
    seen = np.zeros(int(length.sum()), int)
    for chunk in chunks(local, remote, length, limit):
        assert 0 < chunk.total_bytes <= limit
        assert (chunk.remote - chunk.local == 10_000).all()
        assert (chunk.local >= local[chunk.origin]).all()
        for begin, size in zip(chunk.local, chunk.length, strict=True):
            seen[int(begin) : int(begin + size)] += 1
    assert (seen == 1).all()


def test_nothing_gives_no_chunk():
    assert list(chunks(u64(), u64(), u64(), 8)) == []
    assert list(chunks(u64(1), u64(1), u64(0), 8)) == []


def test_pieces_lie_one_after_the_other():
    (chunk,) = chunks(u64(0, 9, 20), u64(0, 9, 20), u64(3, 4, 5), 100)
    assert list(chunk.packed_at(1000)) == [1000, 1003, 1007]


def test_outcomes_name_descriptors_of_the_whole():
    *_, last = chunks(u64(0, 100, 200), u64(0, 100, 200), u64(10, 25, 5), 16)
    assert last.renumbered(Outcome(Code.LOCAL_FAULT, 14, 1)) == Outcome(Code.LOCAL_FAULT, 14, 2)
    assert last.renumbered(Outcome(Code.OK)) == Outcome(Code.OK)
