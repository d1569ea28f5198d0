"""A linked peer that breaks the rules: it gets nothing, and no other peer loses anything.

"Outside" is the victim's memory that peers were not given: the marked page of the heap, and a cache
that is not accessible. Not one byte of it is read or written.
"""

from __future__ import annotations

import contextlib
import time

import msgspec
import pytest

from llm_datadist._engine.link.messages import Faulted, Marked
from llm_datadist._protocol.messages import Notify
from support.hostile.forgeries import (
    guards_of,
    malformed_requests,
    odd_directories,
    requests_outside,
)
from support.hostile.peer import CONSUME, GONE, OK, PAGE, PROTOCOL, PUSH, READ, VERSION, WRITE
from support.hostile.victims import EVERY as ALL
from support.hostile.victims import Victim
from support.station import OK as SUCCESS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.expects_log(
        "lost",
        "closed",
        "pushes of",
        "link_clusters",
        "encrypted lane .* ends",
        "notices of faults",
        "odd",
        "directory",
    ),
]


@pytest.fixture
def linked(victim, attacker):
    """An attacker that has linked, and what it knows of the victim."""
    peer = attacker()
    peer.dial(victim.listen_address(), num_lanes=4)
    return peer, peer.victim_facts()


@pytest.fixture
def third(victim, posture):
    """An honest instance with a link to the victim, whose link stays as it is."""
    made = Victim(3, **posture.options)
    assert made.call("link", victim.listen_address()).status == SUCCESS
    before = made.describe(1)
    yield made
    after = made.describe(1)
    for each in ("generation", "relinked", "lanes"):
        assert after[each] == before[each], each
    assert made.call("pull", 1, ALL, ALL).status == SUCCESS
    assert (made.data == victim.data).all()
    made.close()


@pytest.fixture
def unharmed(victim):
    """The memory outside stays as it was."""
    yield
    assert victim.is_outside_as_it_was()


def asked(peer, victim, args, options):
    """Ask; where the lane or the link has ended, link again."""
    if not peer.asking:
        peer.unlink()
        victim.call("unlink_forced", 66)
        peer.dial(victim.listen_address(), num_lanes=4)
    return peer.ask(*args, **options)


def test_ranges_outside_are_refused(victim, third, linked, unharmed):
    peer, facts = linked
    before = victim.data.copy()
    closed = victim.closed_addresses()
    for args, options in requests_outside(facts, closed):
        answer = asked(peer, victim, args, options)
        assert answer.code != OK, (args, options)
        assert not answer.moved
    assert (victim.data == before).all()
    assert not any(token in b"".join(peer.heard) for token in victim.tokens())


def test_consume_takes_nothing_but_keys(victim, third, linked, unharmed):
    """Guards of links, entries, pools, the instance, and none at all; the third's link lives on."""
    peer, facts = linked
    pools = [segment.guard for segment in peer.victim_host()["segments"]]
    guards = guards_of(facts, *pools, third.link_ref_of(victim))
    for guard in guards:
        answer = asked(peer, victim, (CONSUME,), {"key": guard})
        assert answer.code in {GONE, PROTOCOL, None}, guard


def test_names_of_what_is_no_accessible_entry_open_nothing(victim, third, linked, unharmed):
    peer, facts = linked
    before = victim.data.copy()
    right = tuple(facts["entry"])
    for guard in guards_of(facts, victim.closed_entry()):
        for address in (facts["address"], *victim.closed_addresses()):
            for kind, tail in ((READ, ()), (PUSH, (0,))):
                answer = asked(peer, victim, (kind, [(address, PAGE, *tail)]), {"cache": guard})
                inside = guard[0] in (right[0], 0xFFFFFFFF) and address == facts["address"]
                assert answer.code != OK or inside, guard
    assert (victim.data == before).all()
    assert not any(token in b"".join(peer.heard) for token in victim.tokens())


def test_malformed_requests_end_their_lane_and_no_other(victim, third, linked, unharmed):
    peer, facts = linked
    for args, options in malformed_requests(facts):
        answer = asked(peer, victim, args, options)
        assert answer.code not in (OK, GONE), (args, options)
    assert asked(peer, victim, (VERSION,), {}).code == OK


def test_notices_and_marks_of_a_peer_mark_nothing_of_others(victim, third, linked, unharmed):
    peer, facts = linked
    everything = ((facts["address"], facts["bytes"]), (victim.page_address(), PAGE))
    for guard in guards_of(facts)[:8]:
        if guard[0] < 0 or guard[1] < 0:
            continue
        for message in (Faulted(guard, everything), Marked(guard, everything)):
            peer.notify(Notify(body=msgspec.msgpack.encode(message)))
    time.sleep(0.3)
    assert victim.call("push", 66, [0], [0]).status != "LLM_SUSPECT_REMOTE_ERROR"
    assert third.call("pull", 1, ALL, ALL).status == SUCCESS
    assert third.call("push", 1, ALL, ALL).status == SUCCESS


def test_directories_that_lie_cost_the_call_and_nothing_else(victim, third, linked, unharmed):
    peer, _ = linked
    for log in odd_directories(victim.page_address(), peer.entry):
        peer.log = log
        began = time.monotonic()
        victim.call("pull", 66, ALL, ALL)
        victim.call("push", 66, ALL, ALL)
        assert time.monotonic() - began < 2 * 0.5 + 0.5
        if victim.call("describe", 66).status != SUCCESS or not peer.asking:
            peer.unlink()
            victim.call("unlink_forced", 66)
            peer.dial(victim.listen_address())
    victim.fill(1)


def test_outcomes_that_no_target_sends_mark_nothing(victim, third, linked, unharmed):
    peer, _ = linked
    for code in (2, 3, 4, 6, 9, 10, 12, 13, 14, 1 << 31):
        if not peer.asking or victim.call("describe", 66).status != SUCCESS:
            peer.unlink()
            victim.call("unlink_forced", 66)
            peer.dial(victim.listen_address())
        peer.serve_directory(peer.memory.ctypes.data, peer.entry, 66)
        peer.answers = {READ: (code, b""), WRITE: (code, b"")}
        for call in ("pull", "push"):
            answer = victim.call(call, 66, ALL, ALL)
            assert answer.status not in (SUCCESS, "LLM_SUSPECT_LOCAL_ERROR"), (code, answer)
    other = third.listen_address()
    assert victim.call("link", other).status == SUCCESS  # its own memory is good
    assert victim.call("pull", 3, ALL, ALL).status == SUCCESS
    victim.fill(1)


def rows_of(victim):
    page = victim.page_address()
    return {
        "all memory": ([(0, 2**64 - 1)], (0, 1)),
        "the victim's heap": ([(page, page + PAGE)], (0, 1)),
        "wraps": ([(page, page + PAGE), (2**64 - PAGE, PAGE)], (0, 2)),
        "descends": ([(page, page + PAGE), (PAGE, 2 * PAGE)], (0, 2)),
        "overlaps": ([(page, page + PAGE), (page + 8, page + 2 * PAGE)], (0, 2)),
        "outside the table": ([(page, page + PAGE)], (1 << 62, 1)),
        "longer than the table": ([(page, page + PAGE)], (0, 2**64 - 1)),
        "sum wraps": ([(page, page + PAGE)], (2**63, 2**63)),
    }


def test_pages_that_lie_about_ranges_lead_to_no_memory_of_the_victim(
    victim, third, elsewhere, unharmed
):
    """Ranges of the peer's page are of the peer's process, whatever numbers they are."""
    peer = elsewhere()
    for name, (rows, (first, count)) in rows_of(victim).items():
        peer.forge_page([list(row) for row in rows], {})
        peer.dial(victim.listen_address())
        assert victim.describe(66)["backend"]["host"] == "host", name
        facts = peer.victim_facts()
        peer.list_ranges(9, first, count)
        before = victim.data.copy()
        codes = peer.ring_for(
            victim.page_address(), facts["address"], [(9, 1)], [0, rows[0][0], PAGE]
        )
        assert OK not in codes, name
        assert (victim.data == before).all()
        peer.unlink()
        victim.call("unlink_forced", 66)


def test_pages_with_impossible_counts_are_not_used(victim, elsewhere, unharmed):
    peer = elsewhere()
    for field in ("guards", "ranges", "log"):
        for value in (2**61, 2**63, 2**64 - 1, 1 << 40):
            peer.forge_page([], {field: value})
            with contextlib.suppress(PermissionError):
                peer.dial(victim.listen_address())
                assert victim.describe(66)["backend"]["host"] == "tcp", (field, value)
            peer.unlink()
            victim.call("unlink_forced", 66)


def test_pages_that_change_while_they_are_read_lead_nowhere(victim, third, elsewhere, unharmed):
    peer = elsewhere()
    page = victim.page_address()
    peer.forge_page([[page + 8 * i, page + 8 * i + 4] for i in range(64)], {})
    peer.dial(victim.listen_address())
    facts = peer.victim_facts()
    before = victim.data.copy()
    codes = peer.ring_while_changing(page, facts["address"], 1.0)
    assert OK not in codes
    assert (victim.data == before).all()


def test_a_page_with_very_many_ranges_takes_no_memory(victim, third, elsewhere, unharmed):
    """A doorbell's target would copy them all; 4 million are 64 MiB, and each lane may ask."""
    peer = elsewhere()
    count = 4 << 20
    peer.forge_many_rows(count)
    peer.dial(victim.listen_address())
    facts = peer.victim_facts()
    peer.list_ranges(9, 0, count)
    before = victim.peak_bytes(reset=True)
    peer.ring_for(victim.page_address(), facts["address"], [(9, 1)], [0])
    assert victim.peak_bytes() - before < 24 << 20


ODD_CLAIMS = {
    "no process": {"host": {"pid": 2**31 - 1}},
    "process 1": {"host": {"pid": 1}},
    "wide pid": {"host": {"pid": 2**40}},
    "page at 0": {"host": {"page_address": 0}},
    "page that wraps": {"host": {"page_address": 2**64 - 4096}},
    "page that is longer": {"host": {"published_bytes": 2**40}},
    "page of nothing": {"host": {"published_bytes": 0}},
    "another file": {"host": {"published_fd": 0}},
    "no guard": {"host": {}, "link_ref": (2**64 - 1, 2**64 - 1)},
    "another guard": {"host": {}, "link_ref": (0, 1)},
    "negative guard": {"host": {}, "link_ref": (-1, 1)},
    "page of another life": {"host": {}, "incarnation": 77},
}


@pytest.mark.parametrize("role", ["dials", "is dialed"])
def test_endpoints_with_odd_numbers_make_a_link_over_lanes_or_none(
    victim, third, elsewhere, unharmed, role
):
    peer = elsewhere()
    address = peer.listen()
    for name, claim in ODD_CLAIMS.items():
        peer.set_claim(claim)
        if role == "is dialed":
            victim.call("link", address, 2000)
        else:
            with contextlib.suppress(PermissionError):
                peer.dial(victim.listen_address())
        linked = victim.call("describe", 66)
        if linked.status == SUCCESS:
            assert linked.value["backend"]["host"] == "tcp", name
        peer.unlink()
        victim.call("unlink_forced", 66)
