from __future__ import annotations

import numpy as np
import pytest

from llm_datadist._plan import (
    Layout,
    plan_block_copies,
    plan_blocks,
    plan_slot_to_blocks,
    plan_slots,
    slot_pieces,
)


def blocks(*values):
    return np.array(values, np.int64)


def rows(plan):
    return list(zip(plan.local.tolist(), plan.remote.tolist(), plan.length.tolist(), strict=True))


LOCAL = Layout.of([1_000, 3_000], 1_000, 10)
REMOTE = Layout.of([50_000, 70_000], 2_000, 20)
BOTH = range(2)


def test_one_block():
    plan = plan_blocks(LOCAL, blocks(3), range(1), REMOTE, blocks(7), range(1, 2))
    assert rows(plan) == [(1_300, 70_700, 100)]
    assert plan.total_bytes == 100


@pytest.mark.parametrize("tensors", [1, 2])
@pytest.mark.parametrize("count", [0, 1, 2, 8, 9])
def test_the_native_core_can_read_the_words_of_a_plan(count, tensors):
    """They are bytes, or one whole uint64 array, with three rows."""
    many = Layout.of([1 << 40, 1 << 41], 4_000, 40)
    listed = blocks(*range(0, 2 * count, 2))
    plan = plan_blocks(many, listed, range(tensors), many, listed[::-1], range(tensors))
    words = memoryview(plan.words)
    assert (words.nbytes, words.contiguous) == (8 * 3 * count * tensors, True)
    assert isinstance(plan.words, bytes) or (words.ndim == 1 and words.format in {"L", "Q"})
    assert plan.rows.shape == (3, count * tensors)
    for row, column in zip(plan.rows, (plan.local, plan.remote, plan.length), strict=True):
        assert (column.dtype, column.tolist()) == (np.uint64, row.tolist())
        assert column.flags.c_contiguous


def test_blocks_that_touch_on_both_sides_are_one():
    plan = plan_blocks(LOCAL, blocks(1, 2, 4), BOTH, REMOTE, blocks(5, 6, 7), BOTH)
    assert rows(plan) == [
        (1_100, 50_500, 200),
        (1_400, 50_700, 100),
        (3_100, 70_500, 200),
        (3_400, 70_700, 100),
    ]


@pytest.mark.parametrize("count", [4, 10])
@pytest.mark.parametrize("push", [False, True])
def test_blocks_that_touch_on_one_side_only_are_apart(count, push):
    one = Layout.of([0], 2_000, 20)
    adjacent, apart = blocks(*range(count)), blocks(*range(0, 2 * count, 2))
    for local, remote in ((adjacent, apart), (apart, adjacent)):
        plan = plan_blocks(one, local, range(1), one, remote, range(1), push=push)
        pairs = zip(local.tolist(), remote.tolist(), strict=True)
        assert rows(plan) == [(100 * to, 100 * of, 100) for to, of in pairs]


@pytest.mark.parametrize("count", [4, 40])
def test_tensors_that_touch_on_one_side_only_are_apart(count):
    touching, apart = ([step * i for i in range(count)] for step in (200, 300))
    for local, remote in ((touching, apart), (apart, touching)):
        layouts = Layout.of(local, 200, 2), Layout.of(remote, 200, 2)
        both, span = blocks(0, 1), range(count)
        plan = plan_blocks(layouts[0], both, span, layouts[1], both, span)
        assert rows(plan) == [(*pair, 200) for pair in zip(local, remote, strict=True)]


@pytest.mark.parametrize("count", [3, 10])
def test_order_of_the_lists_does_not_matter(count):
    backward = blocks(*reversed(range(count)))
    plan = plan_blocks(LOCAL, backward, range(1), REMOTE, backward, range(1))
    assert rows(plan) == [(1_000, 50_000, 100 * count)]


@pytest.mark.parametrize("count", [4, 40])
def test_tensors_that_touch_on_both_sides_are_one(count):
    local = Layout.of([1_000 + 200 * i for i in range(count)], 200, 2)
    remote = Layout.of([9_000 + 200 * i for i in range(count)], 200, 2)
    span = range(count)
    plan = plan_blocks(local, blocks(0, 1), span, remote, blocks(0, 1), span)
    assert rows(plan) == [(1_000, 9_000, 200 * count)]
    plan = plan_blocks(local, blocks(1, 0), span, remote, blocks(0, 1), span)
    assert len(plan.length) == 2 * count


def test_joins_only_the_tensors_that_touch():
    starts = [0, 1_000, 5_000, 6_000, 7_000]
    local = Layout.of(starts, 1_000, 10)
    remote = Layout.of([start + 100_000 for start in starts], 1_000, 10)
    listed = blocks(0, 5, 9)
    span = range(5)
    plan = plan_blocks(local, listed, span, remote, listed, span)
    assert rows(plan) == [
        (at, at + 100_000, length)
        for at, length in [
            (0, 100), (500, 100), (900, 200), (1_500, 100), (1_900, 100),
            (5_000, 100), (5_500, 100), (5_900, 200), (6_500, 100), (6_900, 200),
            (7_500, 100), (7_900, 100),
        ]
    ]  # fmt: skip
    assert plan.total_bytes == plan.length.sum()


def test_a_repeated_source_leaves_the_order_to_the_destination():
    plan = plan_blocks(LOCAL, blocks(3, 3, 4, 4), range(1), REMOTE, blocks(0, 10, 1, 11),
                       range(1), push=True)  # fmt: skip
    assert rows(plan) == [(1_300, 50_000, 200), (1_300, 51_000, 200)]


def test_no_blocks_is_an_empty_plan():
    plan = plan_blocks(LOCAL, blocks(), BOTH, REMOTE, blocks(), BOTH)
    assert rows(plan) == []
    assert plan.total_bytes == 0
    assert plan.local.dtype == np.uint64


@pytest.mark.parametrize("num_tensors", [2, 30])
def test_slots_of_different_size(num_tensors):
    local = Layout.of([10_000 * i for i in range(1, num_tensors + 1)], 600, 3)
    remote = Layout.of([50_000 * i for i in range(1, num_tensors + 1)], 1_000, 2)
    span = range(num_tensors)
    plan = plan_slots(
        local, 2, span, remote, 1, span, 150, local_offset_bytes=7, remote_offset_bytes=9
    )
    assert rows(plan) == [
        (10_000 * i + 407, 50_000 * i + 509, 150) for i in range(1, num_tensors + 1)
    ]
    assert plan.total_bytes == 150 * num_tensors


def test_a_slot_onto_raw_addresses():
    plan = plan_slots(LOCAL, 4, BOTH, Layout.raw([8_000, 9_000], 100), 0, BOTH, 100)
    assert rows(plan) == [(1_400, 8_000, 100), (3_400, 9_000, 100)]


def test_a_slot_cut_into_pieces():
    slots = Layout.of([50_000], 700, 2)
    assert slot_pieces(slots, LOCAL.unit_bytes) == 3
    pulled = plan_slot_to_blocks(slots, 1, range(1), LOCAL, blocks(5, 6, 2), range(1))
    assert rows(pulled) == [(1_500, 50_350, 200), (1_200, 50_550, 100)]
    pushed = plan_slot_to_blocks(slots, 1, range(1), LOCAL, blocks(5, 6, 2), range(1), push=True)
    assert rows(pushed) == [(50_350, 1_500, 200), (50_550, 1_200, 100)]


def test_copies_within_a_cache_are_one_plan_unless_they_depend_on_each_other():
    independent = plan_block_copies(LOCAL, blocks(0, 0, 1), blocks(5, 6, 7))
    assert [rows(plan) for plan in independent] == [
        [(1_500, 1_000, 100), (1_600, 1_000, 200), (3_500, 3_000, 100), (3_600, 3_000, 200)]
    ]
    chain = plan_block_copies(LOCAL, blocks(0, 1), blocks(1, 2))
    assert [rows(plan)[0] for plan in chain] == [(1_100, 1_000, 100), (1_200, 1_100, 100)]
    overwritten = plan_block_copies(LOCAL, blocks(0, 2), blocks(1, 0))
    assert [rows(plan)[0] for plan in overwritten] == [(1_100, 1_000, 100), (1_000, 1_200, 100)]
    twice = plan_block_copies(LOCAL, blocks(0, 2), blocks(1, 1))
    assert [rows(plan)[0] for plan in twice] == [(1_100, 1_000, 100), (1_100, 1_200, 100)]


def test_a_block_copied_onto_itself_is_nothing():
    assert plan_block_copies(LOCAL, blocks(3), blocks(3)) == []
