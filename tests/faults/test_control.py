"""Faults of a link's set-up and of its control connection, at every stage."""

import os
import time

import pytest

from llm_datadist._protocol.codec import Kind
from support.proxy import Fault
from support.rig import EVERY, LATE_S, NOISE_S, TIMEOUT_MS
from support.station import OK

LONG = bool(os.environ.get("LDD_LONG"))
LINK_MS = 500
NOT_LINKED = {"LLM_LINK_FAILED", "LLM_TIMEOUT"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.expects_log("connection from .* closed", "link_clusters: ", "lost", "lane"),
]

#: Bytes after which: of the control connection 8 of preamble, then frames: up 167 of hello,
#: 88 of confirm, 19 of complete; down 129 of welcome, 124 of accept, 16 of ready. Of a lane 8 of
#: preamble, 36 of hello and 32 of proof up, 48 of answer down.
PLACES = {
    "preamble": (Kind.CONTROL, "up", 3),
    "hello": (Kind.CONTROL, "up", 20),
    "welcome": (Kind.CONTROL, "down", 0),
    "confirm": (Kind.CONTROL, "up", 230),
    "complete": (Kind.CONTROL, "up", 270),
    "ready": (Kind.CONTROL, "down", 257),
    "accept": (Kind.CONTROL, "down", 150),
    "lane preamble": (Kind.LANE, "up", 0),
    "lane hello": (Kind.LANE, "up", 12),
    "lane answer": (Kind.LANE, "down", 10),
    "lane proof": (Kind.LANE, "up", 50),
}
NAMED_PLACES = frozenset(PLACES)
if LONG:
    for at in range(0, 400, 7):
        PLACES[f"up {at}"] = (Kind.CONTROL, "up", at)
        PLACES[f"down {at}"] = (Kind.CONTROL, "down", at)


def link(rig):
    return rig.local.call("link", rig.proxy.address, LINK_MS)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("action", ["hold", "truncate", "reset", "corrupt"])
def test_a_link_that_is_being_set_up(make_rig, action, place):
    rig = make_rig(link=False, link_secret="open sesame")
    fds = rig.local.fds()
    rig.proxy.spoil(Fault(action, *PLACES[place], once=action == "corrupt"))
    answer = link(rig)
    if not rig.proxy.hits:
        assert LONG, "the fault met nothing"
        return  # beyond the last byte
    if answer.status == OK and action == "corrupt" and place not in NAMED_PLACES:
        return  # the name of an optional field with its default: the message means what it meant
    assert answer.status in ({"LLM_TIMEOUT"} if action == "hold" else NOT_LINKED), answer
    assert answer.seconds < LINK_MS / 1000 + LATE_S + NOISE_S
    assert rig.local.call("pull", 1, [0], [0]).status == "LLM_NOT_YET_LINK"
    rig.proxy.heal()
    deadline = time.monotonic() + 2
    while rig.local.fds() > fds + 1:  # an event of the link that is remembered as lost
        assert time.monotonic() < deadline, "descriptors were left behind"
        time.sleep(0.01)
    deadline = time.monotonic() + 5
    while (answer := link(rig)).status != OK:
        assert time.monotonic() < deadline, answer
    assert rig.transfer_works()


@pytest.mark.parametrize("action", ["truncate", "reset", "corrupt"])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_control_connection_that_breaks_ends_the_link(rig, action, direction):
    """Both ends notice at once, and can link again."""
    rig.proxy.spoil(Fault(action, Kind.CONTROL, direction, once=True))
    status = rig.local.call("check", 1).status
    assert status in {"LLM_LINK_FAILED", "LLM_NOT_YET_LINK", "LLM_TIMEOUT"}
    rig.proxy.heal()
    deadline = time.monotonic() + 5
    while (answer := link(rig)).status != OK:
        assert time.monotonic() < deadline, answer
    assert rig.transfer_works()


def test_a_silent_control_connection(rig):
    """Calls about the link end by their deadline; transfers over lanes go on meanwhile."""
    rig.proxy.spoil(Fault("hold", Kind.CONTROL))
    answer = rig.local.call("check", 1)
    assert answer.status == "LLM_TIMEOUT"
    assert TIMEOUT_MS / 1000 <= answer.seconds < TIMEOUT_MS / 1000 + LATE_S + NOISE_S
    assert rig.local.call("pull", 1, EVERY, EVERY).status == OK
    rig.proxy.heal()
    assert rig.local.call("check", 1).status == OK


def test_unlinking_over_a_silent_control_connection(rig):
    rig.proxy.spoil(Fault("hold", Kind.CONTROL))
    answer = rig.local.call("unlink", 1, 300)
    assert answer.status == "LLM_NOTIFY_PROMPT_UNLINK_FAILED"
    assert answer.seconds < 0.3 + LATE_S + NOISE_S
    assert rig.local.call("pull", 1, [0], [0]).status == "LLM_NOT_YET_LINK"
    rig.proxy.heal()
    deadline = time.monotonic() + 5
    while (answer := link(rig)).status != OK:
        assert time.monotonic() < deadline, answer
    assert rig.transfer_works()


@pytest.mark.parametrize("again", ["by a call", "by itself", "never"])
def test_a_peer_that_is_silent_everywhere_loses_its_link(make_rig, again):
    """Heartbeats notice a network that was cut while nothing was asked of it."""
    rig = make_rig(heartbeat_ms=100, peer_timeout_ms=500, auto_relink=again != "never")
    rig.proxy.spoil(Fault("hold", None))
    deadline = time.monotonic() + 3
    while rig.local.call("describe", 1).status == OK or rig.remote.call("describe", 2).status == OK:
        assert time.monotonic() < deadline, "nobody noticed"
        time.sleep(0.02)
    if again == "by itself":
        time.sleep(1)  # it is dialed, and the dial is held
    rig.proxy.heal()
    if again == "by a call":
        assert link(rig).status == OK
    elif again == "never":
        time.sleep(1)
        assert rig.local.call("describe", 1).status == "LLM_NOT_YET_LINK"
        return
    assert rig.transfer_works(15)
