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
    sound_requests,
)
from support.hostile.frames import (
    CONSUME,
    DENIED,
    GONE,
    LOCAL_GONE,
    OK,
    PAGE,
    PROTOCOL,
    PUSH,
    READ,
    SYSTEM,
    VERSION,
    WRITE,
)
from support.hostile.victims import BLOCK_BYTES, Victim
from support.hostile.victims import EVERY as ALL
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


def test_what_the_forgeries_spoil_is_answered(victim, third, linked, unharmed):
    """The other requests of this file are refused for what they change in these."""
    peer, facts = linked
    for args, options, code in sound_requests(facts):
        assert peer.ask(*args, **options).code == code, (args, options)
    victim.fill(1)


def test_ranges_outside_are_refused(victim, third, linked, unharmed):
    peer, facts = linked
    before = victim.data.copy()
    closed = victim.closed_addresses()
    for args, options in requests_outside(facts, closed):
        answer = asked(peer, victim, args, options)
        assert answer.code in {DENIED, PROTOCOL, None}, (args, options, answer)
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
        assert answer.code in {PROTOCOL, None}, (args, options, answer)
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


def follow_forged_page(peer, victim, rows=(), count=0):
    """Link with a forged page whose entry 9 lists the peer's own memory, and then `rows`.

    A doorbell for that entry moves the peer's bytes: all of the page that a test leaves as it is
    counts for the victim.
    """
    own = peer.own_facts()["address"]
    peer.forge_page([[own, own + PAGE], *map(list, rows)], {})
    peer.dial(victim.listen_address())
    described = victim.describe(66)
    assert described["backend"]["host"] == "host", described["why"]
    facts = peer.victim_facts()
    peer.list_ranges(9, 0, 1)
    assert peer.ring_for(own, facts["address"], [(9, 1)], [own]) == [OK]
    assert (victim.data.reshape(-1).view("u1")[:BLOCK_BYTES] == 0xEE).all()
    victim.fill(1)
    if rows:
        peer.list_ranges(9, 1, len(rows))
    return facts


LIES = {  # rows after the first, from the heap page's address on; and the list of entry 9
    "all memory": (lambda page: [(0, 2**64 - 1)], (1, 1)),
    "the victim's heap": (lambda page: [(page, page + PAGE)], (1, 1)),
    "wraps": (lambda page: [(page, page + PAGE), (2**64 - PAGE, PAGE)], (1, 2)),
    "descends": (lambda page: [(page, page + PAGE), (PAGE, 2 * PAGE)], (1, 2)),
    "overlaps": (lambda page: [(page, page + PAGE), (page + 8, page + 2 * PAGE)], (1, 2)),
    "outside the table": (lambda page: [(page, page + PAGE)], (1 << 62, 1)),
    "longer than the table": (lambda page: [(page, page + PAGE)], (1, 2**64 - 1)),
    "sum wraps": (lambda page: [(page, page + PAGE)], (2**63, 2**63)),
}
IN_ORDER = {"all memory", "the victim's heap"}  # lists that a reader follows, to the peer's memory


def test_pages_that_lie_about_ranges_lead_to_no_memory_of_the_victim(
    victim, third, elsewhere, unharmed
):
    """Ranges of the peer's page are of the peer's process, whatever numbers they are."""
    peer = elsewhere()
    page = victim.page_address()
    for name, (rows_at, (first, count)) in LIES.items():
        rows = rows_at(page)
        facts = follow_forged_page(peer, victim, rows)
        peer.list_ranges(9, first, count)
        before = victim.data.copy()
        codes = peer.ring_for(page, facts["address"], [(9, 1)], [0, rows[0][0], PAGE])
        assert codes, name
        assert OK not in codes, name
        assert (set(codes) == {SYSTEM}) is (name not in IN_ORDER), (name, codes)
        assert (victim.data == before).all()
        peer.unlink()
        victim.call("unlink_forced", 66)


def test_pages_with_impossible_counts_are_not_used(victim, elsewhere, unharmed):
    peer = elsewhere()
    for field in (None, "guards", "ranges", "log"):
        for value in (2**61, 2**63, 2**64 - 1, 1 << 40):
            peer.forge_page([], {} if field is None else {field: value})
            peer.dial(victim.listen_address())
            described = victim.describe(66)
            if field is None:
                assert described["backend"]["host"] == "host", described["why"]
            else:
                assert described["backend"]["host"] == "tcp", (field, value)
                assert "page is inconsistent" in described["why"]["host"], (field, value)
            peer.unlink()
            victim.call("unlink_forced", 66)


def test_pages_that_change_while_they_are_read_lead_nowhere(victim, third, elsewhere, unharmed):
    peer = elsewhere()
    page = victim.page_address()
    rows = [(page + 8 * i, page + 8 * i + 4) for i in range(64)]
    facts = follow_forged_page(peer, victim, rows)
    before = victim.data.copy()
    codes = peer.ring_while_changing(page, facts["address"], 1.0)
    assert {SYSTEM, DENIED, LOCAL_GONE} <= set(codes)  # no list, a list, a dead entry
    assert OK not in codes
    assert (victim.data == before).all()


def test_a_page_with_very_many_ranges_takes_no_memory(victim, third, elsewhere, unharmed):
    """A doorbell's target would copy them all; 4 million are 64 MiB, and each lane may ask."""
    peer = elsewhere()
    most, count = 1 << 16, 4 << 20
    peer.forge_many_rows(count)
    peer.dial(victim.listen_address())
    facts = peer.victim_facts()
    asked = (victim.page_address(), facts["address"], [(9, 1)], [0])
    peer.list_ranges(9, 0, most)
    assert peer.ring_for(*asked) == [DENIED]  # read, and the address is in none of them
    for many in (most + 1, count):
        peer.list_ranges(9, 0, many)
        before = victim.peak_bytes(reset=True)
        assert peer.ring_for(*asked) == [SYSTEM]
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
    for name, claim in {"the truth": {"host": {}}, **ODD_CLAIMS}.items():
        peer.set_claim(claim)
        if role == "is dialed":
            victim.call("link", address, 2000)
        else:
            with contextlib.suppress(PermissionError):
                peer.dial(victim.listen_address())
        linked = victim.call("describe", 66)
        if name == "the truth":
            assert linked.value["backend"]["host"] == "host", linked
        elif linked.status == SUCCESS:
            assert linked.value["backend"]["host"] == "tcp", name
        peer.unlink()
        victim.call("unlink_forced", 66)
