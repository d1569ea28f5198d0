"""(fault x operation x phase) on the control connection of a link that is up.

As in test_matrix.py: the call ends with the right status in time, nothing is left behind, and the
two can transfer again afterwards, over the same link or over a new one.
"""

import os
import time
from typing import NamedTuple

import pytest

from llm_datadist._protocol.codec import Kind
from support.operations import LANES
from support.proxy import Fault
from support.rig import LATE_S, NOISE_S, TIMEOUT_MS
from support.station import OK

LONG = bool(os.environ.get("LDD_LONG"))
DEADLINE_S = TIMEOUT_MS / 1000
NOT_LINKED = {"LLM_LINK_FAILED", "LLM_NOT_YET_LINK"}
UNTOLD = "LLM_NOTIFY_PROMPT_UNLINK_FAILED"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.expects_log(
        "connection from .* closed",
        "lost",
        "loses its link",
        "lane",
        "unlink_clusters: ",
        "link_clusters: .*no answer ",  # of `works_again`: the peer asks the old link first
    ),
]

#: Where the fault meets the conversation: bytes of one direction that pass before it.
PHASES = {
    "request": ("up", 0),
    "within the request": ("up", 3),
    "answer": ("down", 0),
    "within the answer": ("down", 3),
}


class Operation(NamedTuple):
    """A call on the control connection.

    Attributes:
        arguments: Of the station's call.
        silent: How it ends when the peer's answer does not come by the deadline.
        broken: How it may end when the connection breaks, or its bytes are wrong.
        ends_link: Whether the link is gone afterwards in any case.
    """

    arguments: tuple
    silent: str
    broken: set
    ends_link: bool = False


OPERATIONS = {
    "check": Operation(("check", 1), "LLM_TIMEOUT", NOT_LINKED | {"LLM_TIMEOUT"}),
    "unlink": Operation(("unlink", 1, TIMEOUT_MS), UNTOLD, {UNTOLD, OK}, ends_link=True),
    # A peer that does not answer loses its link, not the call its success.
    "remap": Operation(("remap",), OK, {OK}),
}


class Effect(NamedTuple):
    """What a fault does.

    Attributes:
        action, value, once: See Fault.
        kind: "silent", "broken", or "late": slower, but in time.
    """

    action: str
    kind: str
    value: float = 0.0
    once: bool = False


EFFECTS = {
    "black hole": Effect("hold", "silent"),
    "1 byte/s": Effect("throttle", "silent", value=1),
    "late": Effect("delay", "silent", value=DEADLINE_S + 0.2),
    "delay": Effect("delay", "late", value=0.03),
    "slow": Effect("throttle", "late", value=20_000),
    "end": Effect("truncate", "broken"),
    "reset": Effect("reset", "broken"),
    "corrupt": Effect("corrupt", "broken", once=True),
}
#: In the short form: every effect, operation and phase, not all of their combinations.
SHORT = {
    ("black hole", "check", "answer"),
    ("black hole", "unlink", "request"),
    ("black hole", "remap", "answer"),
    ("1 byte/s", "remap", "within the request"),
    ("late", "unlink", "answer"),
    ("delay", "remap", "request"),
    ("slow", "check", "request"),
    ("end", "remap", "request"),
    ("end", "unlink", "within the answer"),
    ("reset", "check", "within the request"),
    ("reset", "unlink", "answer"),
    ("corrupt", "check", "within the answer"),
    ("corrupt", "remap", "request"),
}


def cases():
    for effect in EFFECTS:
        for operation in OPERATIONS:
            for phase in PHASES:
                if LONG or (effect, operation, phase) in SHORT:
                    yield pytest.param(effect, operation, phase, id=f"{effect}-{operation}-{phase}")


def statuses(effect, operation):
    if effect.kind == "late":
        return {OK}
    return {operation.silent} if effect.kind == "silent" else operation.broken


def works_again(rig):
    """Link, which is nothing when the link is there, until transfers come through."""
    deadline = time.monotonic() + 5
    while (answer := rig.local.call("link", rig.proxy.address, 1000)).status != OK:
        assert time.monotonic() < deadline, answer
    assert rig.transfer_works()


@pytest.mark.parametrize(("effect", "operation", "phase"), list(cases()))
def test_matrix(rig, effect, operation, phase):
    effect, operation = EFFECTS[effect], OPERATIONS[operation]
    assert rig.transfer_works()
    assert rig.all_lanes_are_back(LANES)
    fds = rig.local.fds()
    direction, after = PHASES[phase]
    rig.proxy.spoil(Fault(effect.action, Kind.CONTROL, direction, after, effect.value, effect.once))
    answer = rig.local.call(*operation.arguments)
    assert rig.proxy.hits, "the fault met nothing"
    assert answer.status in statuses(effect, operation), answer
    assert answer.seconds < DEADLINE_S + LATE_S + NOISE_S, answer
    if operation.ends_link:
        assert rig.local.call("pull", 1, [0], [0]).status == "LLM_NOT_YET_LINK"
    assert rig.is_quiet()
    rig.proxy.heal()
    works_again(rig)
    assert rig.all_lanes_are_back(LANES)
    deadline = time.monotonic() + 3
    while rig.local.fds() > fds + 1:  # an event of a link that is remembered as lost
        assert time.monotonic() < deadline, "descriptors were left behind"
        time.sleep(0.01)
