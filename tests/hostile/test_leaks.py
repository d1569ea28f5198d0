"""Memory that peers may not access: a marked page of the heap that no attack may read.

Each test does one of the ways in which a peer could have the bytes of a process's heap put into a
registered cache, from where it reads them: by a pull of the victim's or by a doorbell.
"""

from __future__ import annotations

import pytest

from llm_datadist._protocol.codec import Kind
from support.framing import Tags
from support.hostile.attackers import Remote
from support.hostile.frames import ANY_ENTRY, NOTHING, READ, request_of
from support.hostile.victims import BLOCK_BYTES, EVERY, Victim
from support.proxy import Proxy
from support.station import OK

pytestmark = [
    pytest.mark.slow,
    pytest.mark.expects_log(
        "lost", "closed", "link_clusters", "malformed frames", "encrypted lane .* ends"
    ),
]
LANES = 2  # of each direction, when a link starts
LINK_INDICES = (0, 1, 2, 5, (1 << 20) - 1)


def check_closed(attacker, victim, facts, mark):
    """The attacker reads the victim's cache, and the victim pulls: the mark is in neither."""
    token, page = mark
    before = victim.data.copy()
    pairs = [(1, 1), facts["entry"], facts["link_ref"], attacker.own_facts()["entry"]]
    attacker.ring_for(
        page, facts["address"], pairs, [facts["address"], attacker.own_facts()["address"], 0]
    )
    assert (victim.data == before).all(), "a doorbell has put bytes into a cache"
    if attacker.lanes_left():
        attacker.read(page, BLOCK_BYTES)
    if attacker.lanes_left():
        attacker.read(page, BLOCK_BYTES, facts["entry"])
    for entry in (facts["entry"], (0, 1), facts["link_ref"]):
        attacker.serve_directory(page, entry, 66)
        victim.call("pull", 66, EVERY, EVERY)
        assert token not in victim.data.tobytes(), "a pull has read what the peer has no right to"
    if attacker.lanes_left():
        attacker.read(facts["address"], facts["bytes"])
    assert not attacker.has_heard(token)


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_one_that_is_dialed_and_describes_the_victim_itself_reads_no_heap(
    victim, attacker, request, where
):
    """It gives the victim's own incarnation, process, page and file, and some guard of that page.

    From the victim's process, which is also the test's, and from one of its own.
    """
    peer = attacker() if where == "here" else request.getfixturevalue("elsewhere")()
    address = peer.listen()
    facts = None
    refs = [("victim", "victim"), *((index, 1) for index in LINK_INDICES)]
    claims = [{"host": "victim", "incarnation": "victim", "link_ref": ref} for ref in refs]
    for claim in ({"host": None}, {"host": "victim", "link_ref": refs[0]}, *claims):
        peer.set_claim(claim)
        assert victim.call("link", address).status == OK  # as with any stranger: over lanes
        peer.wait_linked()
        facts = facts or peer.victim_facts()
        described = victim.describe(66)
        assert described["backend"]["host"] == "tcp", described
        check_closed(peer, victim, facts, (victim.token, victim.page_address()))
        peer.unlink()
        victim.call("unlink_forced", 66)


@pytest.mark.parametrize("user", [None, 65534])
def test_one_that_takes_the_name_of_a_third_reads_no_heap_of_it(posture, victim, group, user):
    """It links to C, and then to A as if it were C; A would read C's memory for it."""
    third = Remote(group, "victim", 3, **posture.options)
    peer = Remote(group, "attacker", *posture, user=user)
    peer.set_claim({"host": {}})
    peer.dial(third.listen_address())
    of_third = peer.victim_facts()
    mark = third.mark(), third.page_address()
    for link_index in (of_third["link_ref"][0], 0, 1, 2, of_third["entry"][0]):
        for incarnation in (of_third["incarnation"], 12345):
            peer.set_claim(
                {
                    "incarnation": incarnation,
                    "host": of_third["host"],
                    "link_ref": (link_index, 1),
                }
            )
            peer.dial(victim.listen_address())
            assert victim.describe(66)["backend"]["host"] == "tcp"
            facts = peer.victim_facts() | {"link_ref": of_third["link_ref"]}
            facts["entry"] = of_third["entry"]
            check_closed(peer, victim, facts, mark)
            peer.unlink()
            victim.call("unlink_forced", 66)
    third.peer.kill()


def test_one_that_is_dialed_does_not_link_the_victim_to_itself(victim):
    """It passes everything on to the victim's own listener, and so needs no secret."""
    with Proxy(victim.listen_address()) as relay:
        assert victim.call("link", relay.address).status == "LLM_LINK_FAILED"
    assert victim.call("describe", 1).status == "LLM_NOT_YET_LINK"


def lanes_of(path):
    return path.open_connections(Kind.LANE) + path.open_connections(Kind.LANE_TLS)


@pytest.mark.expects_log("malformed frames")
def test_requests_that_one_on_the_path_injects_read_no_heap(posture, victim, eventually):
    """On each lane, of the heap and of a cache; without a secret and TLS of the heap alone."""
    other = Victim(5, **posture.options)
    with Proxy(victim.listen_address()) as path:
        assert other.call("link", path.address).status == OK
        path.record()
        before = victim.data.copy()
        for address in (victim.page_address(), victim.data.ctypes.data):
            request = request_of(READ, [(address, BLOCK_BYTES)], ANY_ENTRY, NOTHING, {})
            eventually(lambda: len(lanes_of(path)) == 2 * LANES)
            lanes = lanes_of(path)
            for lane in lanes:
                lane.inject(Tags(bytes(16)).seal(request))
            # Those on which the victim serves end when it has read the request.
            eventually(lambda lanes=lanes: len(set(lanes) - set(path.connections)) >= LANES)
        told = b"".join(data for _, _, data in path.recorded)
        assert victim.token not in told
        assert before.tobytes()[:BLOCK_BYTES] not in told
        assert (victim.data == before).all()
    other.call("unlink_forced", 1)
    other.close()
