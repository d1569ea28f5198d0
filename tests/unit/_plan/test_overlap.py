"""Ranges that are both source and destination of one copy."""

import numpy as np
import pytest

from llm_datadist._plan import Plan, first_overlap


def plan(*rows):
    words = np.array(rows, np.uint64).reshape(-1, 3)
    return Plan.of(words[:, 0], words[:, 1], words[:, 2], int(words[:, 2].sum()))


@pytest.mark.parametrize(
    "rows",
    [
        (),
        [(0, 100, 100)],
        [(100, 0, 100)],
        [(64, 64, 64)],
        [(0, 64, 64), (128, 192, 64)],
        [(0, 64, 64), (128, 64, 64)],
    ],
)
def test_none(rows):
    assert first_overlap(plan(*rows)) is None


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(1, 0, 100)], ((1, 100), (0, 100))),
        ([(0, 99, 100)], ((0, 100), (99, 100))),
        ([(0, 64, 64), (64, 0, 64)], ((0, 64), (0, 64))),
        ([(500, 0, 400), (100, 450, 1), (399, 900, 9)], ((100, 1), (0, 400))),
        # A long range begins before a short one that begins later and ends earlier.
        ([(900, 0, 100), (800, 10, 5), (50, 700, 10)], ((50, 10), (0, 100))),
    ],
)
def test_the_first_one_is_named(rows, expected):
    assert first_overlap(plan(*rows)) == expected
