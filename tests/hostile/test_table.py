"""The table of docs/security.md: what each posture protects, from each kind of others.

One test for each row, for all postures; what a linked peer can do is in test_forged.py and
test_leaks.py.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from llm_datadist._protocol.codec import Kind, ProtocolError
from support.authority import Authority
from support.hostile.attackers import Attacker, Remote
from support.hostile.frames import DENIED, OK, READ, WRITE
from support.hostile.peer import POSTURES, Posture
from support.hostile.victims import BLOCK_BYTES, EVERY, Victim
from support.proxy import Fault, Proxy
from support.station import OK as SUCCESS

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
NOBODY = 65534
ROWS = {
    "a stranger who connects": "test_a_stranger_who_connects",
    "an instance that we dial": "test_an_instance_that_we_dial",
    "one on the path": "test_one_on_the_path",
    "a linked peer": "test_a_linked_peer",
    "another user of the host": "test_another_user_of_the_host",
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.expects_log("lost", "closed", "link_clusters", "encrypted lane .* ends", "refused"),
]


def test_the_table_has_these_rows_and_columns():
    text = PAGE.read_text().partition("## Protection by posture")[2].partition("\n## ")[0]
    table = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    columns = [cell.strip().replace("`tls_lanes`", "lanes") for cell in table[0][1:]]
    assert columns == ["nothing set", "secret", "TLS", "TLS + lanes"]
    assert len(columns) == len(POSTURES)
    rows = [re.sub(r"\*", "", row[0]).strip() for row in table[2:]]
    assert rows == list(ROWS)
    assert all(name in globals() for name in ROWS.values())


@pytest.fixture
def outsiders(posture, tmp_path):
    """Attackers that do not have what the posture gives to members, by what they have instead."""
    other = Authority(tmp_path, "another authority").issue()
    have = {
        "nothing": Posture("nothing"),
        "another secret": Posture("secret", secret="incorrect horse"),
        "other certificates": Posture("TLS", tls=other),
        "other certificates, lanes": Posture("TLS lanes", tls=other, lanes=True),
    }
    if posture.name == "nothing":
        have.pop("nothing")
    made = {name: Attacker(what) for name, what in have.items()}
    yield made
    for each in made.values():
        each.close()


def check_limits(peer, victim):
    """A linked peer uses what is accessible, and no other memory."""
    facts = peer.victim_facts()
    assert peer.ask(READ, [(facts["address"], BLOCK_BYTES)]).code == OK
    told = b"".join(peer.heard)
    assert victim.data.tobytes()[:BLOCK_BYTES] in told
    written = peer.ask(WRITE, [(facts["address"], 16)], payload=b"\xee" * 16)
    assert (written.code, written.moved) == (OK, 16)
    assert victim.data.tobytes()[:16] == b"\xee" * 16
    for address in victim.closed_addresses():
        assert peer.ask(READ, [(address, BLOCK_BYTES)]).code == DENIED
        assert peer.ask(WRITE, [(address, 16)], payload=b"\xee" * 16).code == DENIED
    assert victim.is_outside_as_it_was()
    assert not any(peer.has_heard(token) for token in victim.tokens())


def test_a_stranger_who_connects(posture, victim, attacker, outsiders):
    """Links where nothing is set; elsewhere it does not, whatever it has."""
    for name, stranger in outsiders.items():
        with pytest.raises((OSError, ProtocolError)):
            stranger.dial(victim.listen_address())
        assert victim.call("describe", 66).status == "LLM_NOT_YET_LINK", name
    if posture.name == "nothing":
        peer = attacker()
        peer.dial(victim.listen_address())
        check_limits(peer, victim)


def test_an_instance_that_we_dial(posture, victim, attacker, outsiders):
    """Becomes a linked peer where nothing is set; elsewhere only with what members have."""
    for name, other in outsiders.items() if posture.name != "nothing" else ():
        answer = victim.call("link", other.listen())
        assert answer.status == "LLM_LINK_FAILED", name
        assert victim.call("describe", 66).status == "LLM_NOT_YET_LINK", name
    if posture.name == "nothing":
        peer = attacker()
        assert victim.call("link", peer.listen()).status == SUCCESS
        peer.wait_linked()
        check_limits(peer, victim)


@pytest.fixture
def path(posture, victim):
    """A proxy between the victim and an honest instance, which pulls and pushes over lanes."""
    honest = Victim(4, transfer_backend="tcp", **posture.options)
    with Proxy(victim.listen_address()) as made:
        made.record()
        assert honest.call("link", made.address).status == SUCCESS
        made.honest = honest
        yield made
    honest.call("unlink_forced", 1)
    honest.close()


def test_one_on_the_path(posture, victim, path):
    """What it can read, and that it changes no request or reply; KV caches it can, if plain."""
    honest = path.honest
    assert honest.call("pull", 1, EVERY, EVERY).status == SUCCESS
    lanes = [data for kind, _, data in path.recorded if kind in (Kind.LANE, Kind.LANE_TLS)]
    control = [data for kind, _, data in path.recorded if kind not in (Kind.LANE, Kind.LANE_TLS)]
    reads_kv = victim.data.tobytes()[:2048] in b"".join(lanes)
    assert reads_kv is (posture.name != "TLS lanes")
    reads_control = b"incarnation" in b"".join(control)
    assert reads_control is (posture.tls is None)
    kind = Kind.LANE_TLS if posture.lanes else Kind.LANE
    for direction in ("up", "down"):
        honest.data[:] = 0
        path.spoil(Fault("corrupt", kind, direction, after=0, once=True))
        answer = honest.call("pull", 1, EVERY, EVERY)
        path.wait_hit()
        path.heal()
        # The head of the first frame: never taken for what was said.
        assert answer.status != SUCCESS or (honest.data == victim.data).all()
        deadline = time.monotonic() + 5
        while honest.call("pull", 1, EVERY, EVERY).status != SUCCESS:
            assert time.monotonic() < deadline
        assert (honest.data == victim.data).all()
    assert victim.is_outside_as_it_was()


@pytest.mark.parametrize("kind", ["control", "lane"])
@pytest.mark.parametrize("posture", POSTURES[1:], indirect=True)  # "nothing" authenticates nothing
def test_one_on_the_path_of_a_handshake(posture, victim, kind):
    """A modified handshake that is authenticated makes no link."""
    honest = Victim(4, transfer_backend="tcp", **posture.options)
    with Proxy(victim.listen_address()) as path:
        control = Kind.CONTROL_TLS if posture.tls else Kind.CONTROL
        lane = Kind.LANE_TLS if posture.lanes else Kind.LANE
        which = control if kind == "control" else lane
        for after in (40, 90):
            for direction in ("up", "down"):
                if kind == "lane" and after > 60:
                    continue  # not part of what is proved when the lane is opened
                path.spoil(Fault("corrupt", which, direction, after=after))
                assert honest.call("link", path.address, 2000).status != SUCCESS
                path.heal()
    honest.close()


def test_a_linked_peer(posture, victim, attacker):
    """In both roles. What else it tries is in the other files."""
    peer = attacker()
    peer.dial(victim.listen_address())
    check_limits(peer, victim)
    peer.unlink()
    victim.call("unlink_forced", 66)
    victim.fill(1)
    other = attacker(cluster_id=67)
    assert victim.call("link", other.listen()).status == SUCCESS
    other.wait_linked()
    check_limits(other, victim)


def test_another_user_of_the_host(posture, victim, group):
    """It is a stranger, or a member; the same-host path is for one user where nothing is set."""
    peer = Remote(group, "attacker", *posture, user=NOBODY)
    peer.set_claim({"host": {}})
    peer.dial(victim.listen_address())
    uses = victim.describe(66)["backend"]["host"]
    assert uses == ("tcp" if posture.name == "nothing" else "host")
    facts = peer.victim_facts()
    peer.read(facts["address"], BLOCK_BYTES)
    assert peer.has_heard(victim.data.tobytes()[:BLOCK_BYTES])
    if posture.name != "nothing":
        stranger = Remote(group, "attacker", *Posture("nothing"), user=NOBODY)
        with pytest.raises(PermissionError):
            stranger.dial(victim.listen_address())
