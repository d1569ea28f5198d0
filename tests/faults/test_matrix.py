"""(fault x operation x phase) between two instances: every call ends right, and nothing follows it.

A corrupted byte of payload is not noticed without the option checksum (test_checksums.py), for
lanes have none beyond TCP's own. Corrupt frames are.
"""

import os
import time
from typing import NamedTuple

import pytest

from llm_datadist._protocol.codec import Kind
from support.operations import Operation, recovered, spoilt_run
from support.proxy import Fault
from support.rig import BLOCKS, LATE_S, NOISE_S, QUIET_S, TIMEOUT_MS, WORDS
from support.station import OK, pattern

LONG = bool(os.environ.get("LDD_LONG"))
BROKEN = {"LLM_LINK_FAILED", OK}  # a lane broke under it, or it went over the others
REFUSED = {"LLM_FAILED", "LLM_LINK_FAILED", "LLM_TIMEOUT"}  # not the protocol any more
DEADLINE_S = TIMEOUT_MS / 1000
DEAD_PEER_S = 1.0

pytestmark = pytest.mark.expects_log("lane", "layer", "connection from .* closed")


class Phase(NamedTuple):
    """Where a fault meets the operation: bytes of one direction that pass before it."""

    direction: str
    after: int


PULLING = {
    "request": Phase("up", 0),
    "within the request": Phase("up", 40),
    "answer": Phase("down", 0),
    "payload": Phase("down", 5000),
}
PUSHING = {
    "request": Phase("up", 0),
    "within the request": Phase("up", 40),
    "answer": Phase("down", 0),
    "payload": Phase("up", 5000),
    "outcome": Phase("down", 16),
}
INLINE = {  # of one block: 64 KiB, which follow the request at once
    "request": Phase("up", 0),
    "payload": Phase("up", 5000),
    "outcome": Phase("down", 0),
}
LOOKING_UP = {  # in a directory that has changed: its version, then what is new in it
    "request": Phase("up", 0),
    "within the request": Phase("up", 40),
    "answer": Phase("down", 0),
    "second request": Phase("up", 97),
    "record": Phase("down", 70),
}
PHASES = {
    "pull": PULLING,
    "lookup": LOOKING_UP,
    "push": PUSHING,
    "push one block": INLINE,
    "layerwise": PUSHING,
    "take": PULLING,
}


class Effect(NamedTuple):
    """What a fault does, and how a call under it may end."""

    action: str
    statuses: set
    value: float = 0.0
    once: bool = False
    begins: float = 0.0  # not before
    ends: float = DEADLINE_S + LATE_S


EFFECTS = {
    "black hole": Effect("hold", {"LLM_TIMEOUT"}, begins=DEADLINE_S),
    "one lane black hole": Effect("hold", {"LLM_TIMEOUT"}, once=True, begins=DEADLINE_S),
    "1 byte/s": Effect("throttle", {"LLM_TIMEOUT"}, value=1, begins=DEADLINE_S),
    "late": Effect("delay", {"LLM_TIMEOUT"}, value=DEADLINE_S + 0.15, begins=DEADLINE_S),
    "delay": Effect("delay", {OK}, value=0.03, begins=0.03),
    "slow": Effect("throttle", {OK}, value=20e6),
    "end": Effect("truncate", BROKEN, once=True, ends=DEAD_PEER_S),
    "reset": Effect("reset", BROKEN, once=True, ends=DEAD_PEER_S),
    "every lane ends": Effect("truncate", BROKEN, ends=DEAD_PEER_S),
    "every lane reset": Effect("reset", BROKEN, ends=DEAD_PEER_S),
}
#: In the short form: every effect and every phase of every operation, not all of their pairs.
SHORT = {
    "black hole": {
        ("pull", "payload"),
        ("push", "outcome"),
        ("take", "answer"),
        ("lookup", "answer"),
    },
    "one lane black hole": {("pull", "request"), ("push", "payload")},
    "1 byte/s": {
        ("pull", "answer"),
        ("layerwise", "payload"),
        ("push", "within the request"),
        ("lookup", "record"),
    },
    "late": {
        ("pull", "request"),
        ("push", "request"),
        ("push one block", "request"),
        ("lookup", "second request"),
    },
    "delay": {("pull", "answer"), ("push", "request"), ("layerwise", "outcome")},
    "slow": {("pull", "payload"), ("push", "payload")},
    "end": {("pull", "payload"), ("push", "answer"), ("take", "payload"), ("lookup", "record")},
    "reset": {
        ("pull", "within the request"),
        ("push one block", "payload"),
        ("take", "request"),
        ("lookup", "within the request"),
    },
    "every lane ends": {("pull", "answer"), ("push", "payload")},
    "every lane reset": {("pull", "payload"), ("push", "outcome"), ("layerwise", "request")},
}


@pytest.fixture
def rig(make_rig):
    """Without heartbeats, whose pings could meet the fault on a lane that the call does not use."""
    return make_rig(heartbeat_ms=60_000, peer_timeout_ms=120_000)


def cases():
    for effect in EFFECTS:
        for operation, phases in PHASES.items():
            for phase in phases:
                if LONG or (operation, phase) in SHORT[effect]:
                    yield pytest.param(effect, operation, phase, id=f"{effect}-{operation}-{phase}")


@pytest.mark.slow
@pytest.mark.parametrize(("effect", "operation", "phase"), list(cases()))
def test_matrix(rig, effect, operation, phase):
    assert rig.transfer_works()
    fds = rig.local.fds()
    expected, place = EFFECTS[effect], PHASES[operation][phase]
    fault = Fault(
        expected.action, Kind.LANE, place.direction, place.after, expected.value, expected.once
    )
    answer = spoilt_run(rig, Operation(operation, rig), fault)
    assert answer.status in expected.statuses, answer
    assert expected.begins <= answer.seconds < expected.ends + NOISE_S, answer
    recovered(rig, fds)


#: The header of the first frame of each direction: magic, version, kind, flags, bytes, sequence.
@pytest.mark.slow
@pytest.mark.parametrize("operation", ["pull", "push", "push one block"])
@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("offset", range(16) if LONG else [0, 4, 5, 9, 12])
@pytest.mark.expects_log("malformed frames")
def test_a_corrupt_header_is_noticed(rig, operation, direction, offset):
    fds = rig.local.fds()
    assert rig.local.call("pull", 1, [0], [0]).status == OK
    fault = Fault("corrupt", Kind.LANE, direction, offset, once=True)
    answer = spoilt_run(rig, Operation(operation, rig), fault)
    assert answer.status in REFUSED, answer
    assert answer.seconds < DEADLINE_S + LATE_S + NOISE_S
    recovered(rig, fds)


def test_a_corrupt_byte_of_payload_is_not_noticed(rig):
    """Shows what lanes do not promise; a checksum in them would change this test."""
    operation = Operation("pull", rig)
    rig.proxy.spoil(Fault("corrupt", direction="down", after=5000, once=True))
    assert operation.run().status == OK
    differing = rig.local.data.view("u1") != pattern(2, BLOCKS, WORDS).view("u1")
    assert differing.sum() == rig.proxy.hits == 1


def test_bytes_held_back_land_nowhere(rig):
    """What a network that was cut had under way arrives when the call has long raised."""
    for name in ("push", "push one block"):
        operation = Operation(name, rig)
        rig.proxy.spoil(Fault("hold", direction="up", after=3000))
        assert operation.run().status == "LLM_TIMEOUT"
        before = rig.memory()
        rig.proxy.heal()
        time.sleep(QUIET_S)
        assert all((old == new).all() for old, new in zip(before, rig.memory(), strict=True))
        assert rig.transfer_works()
