"""PUSH: addresses of the initiator come from the page of the initiator, never from the request."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from tests.native.lanes.conftest import NOTHING

PAGE = 4096
SIZE = 16 * PAGE


@pytest.fixture
def one(link):
    made = link(size=SIZE, lanes=1)
    made.attach_host()
    return made


def entry_over(one, ranges, *, accessible=True):
    """An entry of the initiator over [(offset, length), ...] of its memory."""
    base = one.local.ctypes.data
    return one.node.open_entry(
        np.array([base + offset for offset, _ in ranges], np.uint64),
        np.array([length for _, length in ranges], np.uint64),
        accessible,
    )


@pytest.mark.parametrize(
    "offset", [0, 2 * PAGE - 1, 3 * PAGE - 7, 5 * PAGE, -PAGE, SIZE - 8, 1 << 40, -(1 << 40)]
)
def test_bytes_outside_the_named_entry_are_refused_and_counted(one, code, offset):
    """The initiator's process has more memory than it has registered."""
    own = entry_over(one, [(PAGE, PAGE), (3 * PAGE, PAGE)])
    before = one.remote.copy()
    outcome = one.push([(PAGE, 0, 8), (offset % 2**64, 8, 8)], local_ref=own)
    assert (outcome.code, outcome.index) == (code.DENIED, 1)
    assert (one.remote == before).all()
    assert one.server.statistics()["strayed_pushes"] == 1
    assert one.push([(3 * PAGE, 0, PAGE)], local_ref=own).code == code.OK


def test_an_entry_that_is_not_accessible_is_not_listed_and_has_to_be_sent(one, code):
    own = entry_over(one, [(0, SIZE)], accessible=False)
    outcome = one.push([(0, 0, 8)], local_ref=own)
    assert (outcome.code, outcome.errno) == (code.SYSTEM, errno.EOPNOTSUPP)
    assert one.write([(0, 0, 8)], local_ref=own).code == code.OK


def test_a_request_that_names_no_entry_or_another_guard_reaches_nothing(one, code):
    key, link_guard = one.node.open_key(), one.node.open_guard()
    one.node.show_proof(link_guard, b"\x01" + bytes(15))  # would be a range, if it were an entry's
    for ref in (key, link_guard):
        assert one.push([(0, 0, 8)], local_ref=ref).code == code.LOCAL_GONE, "no entry of ours"
    outcome = one.lanes.push(one.descriptors([(0, 0, 8)]), NOTHING, one.entry, 0, 1 << 62)
    assert (outcome[0], outcome[1]) == (code.SYSTEM, errno.EOPNOTSUPP)


def test_without_room_in_the_list_of_ranges_pushes_have_to_be_sent(link, code):
    """1,024 guards have room for 2,048 ranges."""
    one = link(size=4096 * 2, lanes=1)
    one.attach_host()
    many = entry_over(one, [(2 * i, 1) for i in range(2049)])
    assert one.push([(0, 0, 1)], local_ref=many).errno == errno.EOPNOTSUPP
    fitting = entry_over(one, [(2 * i, 1) for i in range(2000)])
    assert one.push([(2 * i, i, 1) for i in range(2000)], local_ref=fitting).code == code.OK
    one.node.close_entry(*fitting)
    again = entry_over(one, [(2 * i, 1) for i in range(2040)])
    assert one.push([(2 * 2039, 0, 1)], local_ref=again).code == code.OK
