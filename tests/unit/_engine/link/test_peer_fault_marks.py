"""What one end of a link knows of the other's memory at fault."""

import numpy as np
import pytest

from llm_datadist._engine.link.peer_fault_marks import MOST_MARKS, PeerFaultMarks
from llm_datadist._plan import Plan

ENTRY = (7, 101)


def plan(*ranges):
    words = [np.array(column, np.uint64) for column in zip(*ranges, strict=True)]
    return Plan.of(np.zeros_like(words[0]), *words)


def test_a_mark_is_met_by_what_touches_it():
    marks = PeerFaultMarks()
    assert not marks
    marks.add(ENTRY, [(4096, 4096)])
    assert marks
    assert marks.touched(ENTRY, plan((0, 4096), (8192, 1))) == []
    for touching in ((4096, 1), (8191, 5), (0, 100000), (5000, 10)):
        assert marks.touched(ENTRY, plan((0, 1), touching)) == [(4096, 4096)]
    assert marks.touched((8, 101), plan((4096, 1))) == []


def test_another_life_of_the_cache_has_no_marks():
    marks = PeerFaultMarks()
    marks.add(ENTRY, [(4096, 4096)])
    assert marks.touched((7, 103), plan((4096, 1))) == []
    marks.add((7, 103), [(0, 8)])
    assert marks.touched((7, 103), plan((0, 100000))) == [(0, 8)]
    assert marks.touched(ENTRY, plan((4096, 1))) == []


def test_marks_add_up_once_and_the_owner_has_the_last_word():
    marks = PeerFaultMarks()
    marks.add(ENTRY, [(0, 8)])
    marks.add(ENTRY, [(0, 8), (16, 8)])
    assert marks.touched(ENTRY, plan((0, 100))) == [(0, 8), (16, 8)]
    marks.replace(ENTRY, [(16, 8)])
    assert marks.touched(ENTRY, plan((0, 100))) == [(16, 8)]
    marks.replace(ENTRY, [])
    assert not marks


def test_a_remap_ends_the_marks_that_it_touches():
    marks = PeerFaultMarks()
    marks.add(ENTRY, [(0, 8), (16, 8)])
    marks.add((9, 1), [(8, 8)])
    marks.forget(12, 4)
    assert marks.touched(ENTRY, plan((0, 100))) == [(0, 8), (16, 8)]
    assert marks.touched((9, 1), plan((0, 100))) == []
    marks.forget(23, 1)
    assert marks.touched(ENTRY, plan((0, 100))) == [(0, 8)]
    marks.forget(0, 1000)
    assert not marks


def test_what_is_no_range_of_memory_is_left_out():
    """A peer may say anything; nothing of it reaches the arithmetic of a transfer."""
    marks = PeerFaultMarks()
    marks.replace(ENTRY, [(-1, 5), (5, -1), (5, 0), (2**64 - 1, 1), (2**70, 1), (0, 2**70)])
    assert not marks
    marks.replace(ENTRY, [(2**64 - 9, 8), (-5, 1)])
    assert marks.touched(ENTRY, plan((2**64 - 2, 1))) == [(2**64 - 9, 8)]


@pytest.mark.parametrize("say", ["add", "replace"])
def test_marks_have_a_limit_whatever_is_said(say):
    """A peer may mark as much of its own memory as it likes; it takes no more room here."""
    marks = PeerFaultMarks()
    for index in range(12):
        getattr(marks, say)((index, 1), [(number * 8, 8) for number in range(1024)])
    whole = plan((0, 1 << 20))
    assert sum(len(marks.touched((index, 1), whole)) for index in range(12)) == MOST_MARKS
    marks.replace((0, 1), [])
    marks.add((11, 3), [(0, 8)])
    assert marks.touched((11, 3), whole) == [(0, 8)]
