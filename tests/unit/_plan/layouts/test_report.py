"""Explanations of plans: the reason for the length of pieces, and the cost model."""

from __future__ import annotations

import re

import numpy as np
import pytest

from llm_datadist import DataType
from llm_datadist._plan import Plan
from llm_datadist._plan.layouts import (
    Part,
    dense,
    gathering_is_faster,
    heads_of_rank,
    reason_of,
    share_if_gathered,
    share_of_full_rate,
)

MIB = 1 << 20


def layout(axes, tp=1, block_tokens=16, **other):
    return dense(
        axes, layers=range(2), kv_heads=8, heads=heads_of_rank(8, tp, 0), head_size=128,
        data_type=DataType.DT_BF16, block_tokens=block_tokens, **other,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("src", "dst", "heads", "reason"),
    [
        (layout("HND"), layout("HND", 2), 4, "16,384 bytes .*: all that a block holds of this"),
        (layout("NHD"), layout("NHD", 2), 4, "1,024 bytes .*along token .* 2,048 .* 1,024"),
        (layout("HND"), layout("NHD"), 8, "256 bytes .*along token .* 256 .* 2,048"),
        (layout("NHD"), layout("NHD", 1, 64), 8, "32,768 bytes .*: the tokens of the smaller"),
        (layout("HND"), layout("HND", 1, 64), 8, "4,096 bytes .*along head .* 4,096 .* 16,384"),
    ],
)
def test_the_reason_names_the_axis_that_ends_a_piece(src, dst, heads, reason):
    assert re.search(reason, reason_of(src, dst, Part(0, range(2), range(heads))))


def plan(piece, gap, count=1000, local_gap=0):
    steps = np.arange(count, dtype=np.uint64)
    length = np.full(count, piece, np.uint64)
    local = steps * np.uint64(piece + local_gap)
    return Plan.of(local, steps * np.uint64(piece + gap), length, piece * count)


def test_the_shorter_the_pieces_the_slower():
    for over_lanes in (False, True):
        rates = [
            share_of_full_rate(plan(piece, MIB), write=False, over_lanes=over_lanes)
            for piece in (256, 1024, 4096, 32768)
        ]
        assert rates == sorted(rates)
        assert rates[0] < 0.5
        assert rates[-1] > 0.9


def test_on_the_same_host_pieces_that_are_close_at_the_source_cost_less():
    def rate(gap, write=False):
        return share_of_full_rate(plan(512, gap), write=write, over_lanes=False)

    assert rate(0) > rate(256) > rate(1024) > rate(1025) == rate(MIB)
    assert rate(MIB, write=True) == rate(0)  # its source is the local side


def test_over_lanes_pieces_that_follow_one_another_are_one_on_that_side():
    """A range of the peer costs a descriptor as well."""

    def rate(gap, local_gap):
        pieces = plan(256, gap, local_gap=local_gap)
        return share_of_full_rate(pieces, write=False, over_lanes=True)

    assert rate(0, 0) > rate(0, 256) > rate(256, 0) > rate(256, 256)


def test_nothing_to_move_costs_nothing():
    assert share_of_full_rate(plan(1, 1, 0), write=False, over_lanes=True) == 1.0
    assert share_if_gathered(plan(1, 1, 0)) == 1.0


def test_short_pieces_that_lie_apart_at_the_source_are_gathered():
    for piece, gap, local_gap, gathered in (
        (256, 1792, 0, True),
        (1024, 1024, 0, True),
        (256, 0, 1792, False),
    ):
        pieces = plan(piece, gap, local_gap=local_gap)
        assert gathering_is_faster(pieces, 2) is gathered, (piece, gap)
        direct = share_of_full_rate(pieces, write=False, over_lanes=False)
        assert (share_if_gathered(pieces) > direct) is gathered


def test_long_pieces_and_few_bytes_are_not_gathered():
    assert not gathering_is_faster(plan(4097, MIB), 2)
    assert not gathering_is_faster(plan(256, 1792, 200), 2)
    assert not gathering_is_faster(plan(1, 1, 0), 2)


def test_pieces_that_are_scattered_at_the_destination_cost_more():
    assert share_if_gathered(plan(256, 1792)) > share_if_gathered(plan(256, 1792, local_gap=8))


def test_with_more_cores_than_gather_more_must_be_won():
    """Reads in pieces use up to eight threads, a gathering four of both processes."""
    assert gathering_is_faster(plan(1024, 1024), 4)
    assert not gathering_is_faster(plan(1024, 1024), 8)
    assert gathering_is_faster(plan(256, 1792), 64)


def test_the_first_pieces_of_a_long_plan_stand_for_it():
    """A plan repeats for each tensor; looking at a million pieces would cost more than it saves."""
    few, many = plan(256, 0, 1 << 15, 1792), plan(256, 1792, 1 << 17)
    assert gathering_is_faster(many, 2)
    assert not gathering_is_faster(Plan.joined((few, many)), 2)
