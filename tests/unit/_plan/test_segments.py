"""Plans cut and divided: the same bytes, in the same order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_datadist._plan import Plan, cut, cut_between, segments

LIMIT = 100


def plan_of(lengths):
    length = np.array(lengths, np.uint64)
    starts = np.cumsum(length) - length
    return Plan.of(starts + np.uint64(1000), starts * np.uint64(2), length, int(length.sum()))


def test_a_plan_of_short_descriptors_is_kept():
    plan = plan_of([1, 100, 50])
    assert cut(plan, LIMIT) is plan
    nothing = plan_of([])
    assert cut(nothing, LIMIT) is nothing


def test_long_descriptors_are_cut_on_both_sides():
    plan = cut(plan_of([30, 250, 100]), LIMIT)
    assert plan.length.tolist() == [30, 100, 100, 50, 100]
    assert plan.local.tolist() == [1000, 1030, 1130, 1230, 1280]
    assert plan.remote.tolist() == [0, 60, 160, 260, 560]
    assert plan.total_bytes == 380


def test_empty_descriptors_go():
    assert cut(plan_of([0, 5, 0]), LIMIT).length.tolist() == [5]
    assert len(cut(plan_of([0, 0]), LIMIT).length) == 0


def test_descriptors_are_cut_where_something_else_begins():
    plan = cut_between(plan_of([30, 250, 100]), [1100, 1000, 1280], [200, 560])
    assert plan.length.tolist() == [30, 70, 70, 110, 100]
    assert plan.local.tolist() == [1000, 1030, 1100, 1170, 1280]
    assert plan.remote.tolist() == [0, 60, 130, 200, 560]
    assert plan.total_bytes == 380
    assert cut_between(plan, [1100], [200]) is plan


@given(
    st.lists(st.integers(0, 300), max_size=6),
    st.lists(st.integers(900, 2500), max_size=5),
    st.lists(st.integers(0, 3000), max_size=5),
)
def test_cutting_between_keeps_every_byte(lengths, local, remote):
    before = plan_of(lengths)
    after = cut_between(before, local, remote)
    for side, starts in (("local", local), ("remote", remote)):
        assert bytes_of(before, side) == bytes_of(after, side)
        for addr, size in zip(getattr(after, side).tolist(), after.length.tolist(), strict=True):
            assert not any(addr < start < addr + size for start in starts)


def bytes_of(plan, side):
    ranges = zip(getattr(plan, side).tolist(), plan.length.tolist(), strict=True)
    return [each for addr, size in ranges for each in range(addr, addr + size)]


def test_segments_of_nothing():
    assert list(segments(np.empty(0, np.uint64), LIMIT)) == [slice(0, 0)]


@given(st.lists(st.integers(0, 1000), max_size=40), st.integers(1, 300))
def test_every_byte_is_in_one_place_once(lengths, limit):
    plan = plan_of(lengths)
    after = cut(plan, limit)
    if len(plan.length):
        assert (after.length <= limit).all()
        assert (after.length > 0).all()
    for column in (0, 1):
        moved = [
            [
                int(start) + i
                for start, n in zip(one.rows[column], one.length, strict=True)
                for i in range(int(n))
            ]
            for one in (plan, after)
        ]
        assert moved[0] == moved[1]
    parts = list(segments(after.length, limit))
    covered = [index for part in parts for index in range(part.start, part.stop)]
    assert covered == list(range(len(after.length)))
    for part in parts:
        assert int(after.length[part].sum()) < 2 * limit or part.stop - part.start == 1


@pytest.mark.parametrize("name", ["local", "remote", "length"])
def test_what_native_code_gets_is_contiguous(name):
    plan = cut(plan_of([30, 250, 100]), LIMIT)
    column = getattr(plan, name)
    assert column.dtype == np.uint64
    assert column.flags.c_contiguous
    assert all(column[part].flags.c_contiguous for part in segments(plan.length, LIMIT))
