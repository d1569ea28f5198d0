"""Links inside TLS between two instances: what can be read on the wire, and what faults do to them.

The matrix of plain lanes holds for encrypted ones, too; here are those of its faults that meet
their relays in another way, and what is different: a changed byte is noticed.
"""

import os

import pytest

from llm_datadist._protocol.codec import Kind
from support.authority import Authority
from support.framing import MAGIC
from support.operations import Operation, recovered, spoilt_run
from support.proxy import Fault
from support.rig import BLOCKS, EVERY, LATE_S, NOISE_S, TIMEOUT_MS, WORDS
from support.station import OK, pattern

LONG = bool(os.environ.get("LDD_LONG"))
BROKEN = {"LLM_LINK_FAILED", OK}
DEADLINE_S = TIMEOUT_MS / 1000
DEAD_PEER_S = 1.0
SECRET = "correct horse battery staple"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.expects_log("lane", "layer", "connection from .* closed", "link to .* lost"),
]


@pytest.fixture
def tls(tmp_path):
    """Properties for both ends; what goes over lanes is plain."""
    return Authority(tmp_path).issue()


@pytest.fixture
def rig(make_rig, tls):
    return make_rig(**tls, tls_lanes=True)


def moved(rig):
    """Link, pull, push, look up and send a control message, all of it recorded."""
    rig.proxy.record()
    assert rig.local.call("link", rig.proxy.address).status == OK
    for name in ("pull", "push", "layerwise"):
        operation = Operation(name, rig)
        assert operation.run().status == OK
        assert operation.is_right()
    rig.local.call("check", 1)
    for direction in ("up", "down"):
        assert sum(len(data) for _, way, data in rig.proxy.recorded if way == direction) > 1 << 20
    return rig.proxy.recorded


#: 64 bytes of a block of either side, which the transfers above move.
PAYLOAD = [pattern(seed, BLOCKS, WORDS)[1, 3, 100:108].tobytes() for seed in (1, 2)]
CONTROL = [b"cluster_id", b"hello", b"welcome", b"endpoint", b"nonce"]
REQUEST = [MAGIC.to_bytes(4, "little")]  # the magic of requests on lanes


def found(recorded, patterns, *kinds):
    """Return the patterns that occur in what passed over connections of these kinds."""
    texts = [
        b"".join(data for kind, way, data in recorded if kind in kinds and way == direction)
        for direction in ("up", "down")
    ]
    return [each for each in patterns if any(each in text for text in texts)]


def test_without_tls_everything_can_be_read(make_rig):
    recorded = moved(make_rig(link=False))
    assert {kind for kind, _, _ in recorded} == {Kind.CONTROL, Kind.LANE}
    assert found(recorded, PAYLOAD + REQUEST, Kind.LANE) == PAYLOAD + REQUEST
    assert found(recorded, CONTROL, Kind.CONTROL) == CONTROL


def test_with_a_secret_everything_but_the_secret_can_be_read(make_rig):
    recorded = moved(make_rig(link=False, link_secret=SECRET))
    assert found(recorded, PAYLOAD, Kind.LANE) == PAYLOAD
    assert found(recorded, [SECRET.encode()], *Kind) == []


def test_inside_tls_control_messages_cannot_and_lanes_can_be_read(make_rig, tls):
    recorded = moved(make_rig(link=False, **tls))
    assert {kind for kind, _, _ in recorded} == {Kind.CONTROL_TLS, Kind.LANE}
    assert found(recorded, CONTROL, Kind.CONTROL_TLS) == []
    assert found(recorded, PAYLOAD + REQUEST, Kind.LANE) == PAYLOAD + REQUEST


@pytest.mark.parametrize("secret", [None, SECRET])
def test_with_encrypted_lanes_nothing_can_be_read(make_rig, tls, secret):
    options = {} if secret is None else {"link_secret": secret}
    recorded = moved(make_rig(link=False, **tls, tls_lanes=True, **options))
    assert {kind for kind, _, _ in recorded} == {Kind.CONTROL_TLS, Kind.LANE_TLS}
    assert found(recorded, PAYLOAD + CONTROL + REQUEST + [SECRET.encode()], *Kind) == []


FAULTS = {
    "black hole": (Fault("hold", Kind.LANE_TLS, after=3000), {"LLM_TIMEOUT"}, DEADLINE_S),
    "one lane black hole": (
        Fault("hold", Kind.LANE_TLS, after=3000, once=True),
        {"LLM_TIMEOUT"},
        DEADLINE_S,
    ),
    "1 byte/s": (Fault("throttle", Kind.LANE_TLS, value=1), {"LLM_TIMEOUT"}, DEADLINE_S),
    "late": (Fault("delay", Kind.LANE_TLS, value=DEADLINE_S + 0.15), {"LLM_TIMEOUT"}, DEADLINE_S),
    "end": (Fault("truncate", Kind.LANE_TLS, after=3000, once=True), BROKEN, DEAD_PEER_S),
    "every lane reset": (Fault("reset", Kind.LANE_TLS, after=3000), BROKEN, DEAD_PEER_S),
    "a changed byte": (Fault("corrupt", Kind.LANE_TLS, after=3000, once=True), BROKEN, DEAD_PEER_S),
}


#: In the short form: every fault and every operation, not all of their pairs.
SHORT = {
    "black hole": "push",
    "one lane black hole": "pull",
    "1 byte/s": "push one block",
    "late": "push one block",
    "end": "push",
    "every lane reset": "pull",
    "a changed byte": "push",
}
CASES = [
    (fault, operation)
    for fault in FAULTS
    for operation in ("pull", "push", "push one block")
    if LONG or operation == SHORT[fault]
]


@pytest.mark.parametrize(("fault", "operation"), CASES)
def test_faults(rig, fault, operation):
    assert rig.transfer_works()
    fds = rig.local.fds()
    spoils, statuses, ends = FAULTS[fault]
    answer = spoilt_run(rig, Operation(operation, rig), spoils)
    assert answer.status in statuses, answer
    assert answer.seconds < ends + LATE_S + NOISE_S, answer
    recovered(rig, fds)


def test_no_changed_byte_is_taken(rig):
    """Wherever it is: the lane ends, and no byte that was changed lands anywhere."""
    for after in (0, 5, 6, 500, 20_000, 60_000) if LONG else (5, 20_000):
        operation = Operation("pull", rig)
        rig.proxy.spoil(Fault("corrupt", Kind.LANE_TLS, "down", after, once=True))
        answer = operation.run()
        assert rig.proxy.hits
        assert answer.status in BROKEN | {"LLM_TIMEOUT"}, answer
        words = {seed: pattern(seed, BLOCKS, WORDS) for seed in (1, 2)}
        assert ((rig.local.data == words[1]) | (rig.local.data == words[2])).all()
        rig.recover()


def test_a_link_that_is_cut_comes_again_inside_tls(rig):
    rig.proxy.spoil(Fault("reset", Kind.CONTROL_TLS, "down", once=True))
    rig.local.call("check", 1)
    rig.proxy.heal()
    assert rig.local.call("link", rig.proxy.address).status == OK
    assert rig.transfer_works()
    assert rig.local.describe(1)["encrypted"] == "control connection and lanes"


def test_bytes_that_come_late_land_nowhere(rig):
    for name in ("push", "push one block"):
        operation = Operation(name, rig)
        rig.proxy.spoil(Fault("hold", Kind.LANE_TLS, "up", after=3000))
        assert operation.run().status == "LLM_TIMEOUT"
        assert rig.is_quiet()
        rig.proxy.heal()
        assert rig.is_quiet()
        assert rig.transfer_works()


def test_links_end_with_many_transfers_behind_them(rig):
    fds = rig.local.fds()
    for _ in range(2):
        assert rig.local.call("pull", 1, EVERY, EVERY).status == OK
        assert rig.local.call("unlink", 1).status == OK
        assert rig.local.call("link", rig.proxy.address).status == OK
    assert rig.transfer_works()
    recovered(rig, fds)
