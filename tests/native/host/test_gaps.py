"""Ranges of the peer with gaps between them."""

from __future__ import annotations

import numpy as np
import pytest

from llm_datadist import _native
from support.host_reads import INSTANCE, NO_REF

pytestmark = pytest.mark.slow  # each test starts a process


def strided(at, tools, piece, gap, count):
    """Read pieces with equal gaps between them at the peer, one after the other into own memory."""
    steps = np.arange(count, dtype=np.uint64)
    outcome = at.read_ranges(
        steps * np.uint64(piece) + np.uint64(at.own.address),
        steps * np.uint64(piece + gap) + np.uint64(at.peer.address),
        np.full(count, piece, np.uint64),
        at.local_ref,
        INSTANCE,
        at.peer.entry,
        NO_REF,
        tools.soon(),
    )
    places = (np.arange(count)[:, None] * (piece + gap) + np.arange(piece)).ravel()
    return outcome, at.expected()[places[places < at.own.size]]


@pytest.mark.parametrize("gap", [1, 256, 1023, 1024, 1025, 4096])
@pytest.mark.parametrize("count", [2, 40, 1200])
def test_what_lies_between_the_ranges_lands_nowhere(reading, tools, gap, count):
    """Short gaps are read as well, as that is faster than to leave them out."""
    piece = 64
    at = reading((piece + gap) * count // 4096 + 2)
    at.write_all(7)
    outcome, expected = strided(at, tools, piece, gap, count)
    assert outcome == (_native.OK, 0, -1, piece * count)
    assert np.array_equal(at.own.bytes[: piece * count], expected)
    assert (at.own.bytes[piece * count :] == 7).all()


@pytest.mark.parametrize("side", ["peer", "own"])
def test_a_fault_among_ranges_with_gaps_is_named(reading, tools, side):
    at = reading(16)
    piece, gap, count, bad = 1024, 512, 40, 8  # page 8 of the peer; page 8 of own memory
    if side == "peer":
        at.peer.ask("protect", bad, 1, tools.PROT_NONE)
        first = (bad * at.own.page) // (piece + gap)
        code = _native.REMOTE_FAULT
    else:
        at.own.protect(bad, tools.PROT_NONE)
        first = bad * at.own.page // piece
        code = _native.LOCAL_FAULT
    outcome, expected = strided(at, tools, piece, gap, count)
    assert (outcome[0], outcome[2]) == (code, first)
    before = np.array(at.own.bytes[: first * piece])
    assert np.array_equal(before, expected[: first * piece])
