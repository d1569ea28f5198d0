"""Who owns sockets when an instance closes while it links; who waits for lanes."""

import ctypes
import gc
import os
import signal
import socket
import threading
import time

import numpy as np
import pytest

from llm_datadist._backends.lane_watch import LaneWatch
from llm_datadist._backends.lanes import LinkLanes
from llm_datadist._backends.node import Node
from llm_datadist._backends.outcomes import Code
from llm_datadist._backends.transfer import Transfer
from llm_datadist._plan import Plan
from llm_datadist._protocol.lane_auth import LaneKeys, OpenLane
from llm_datadist._types.refs import NO_REF
from support.instances import eventually


def sockets(count):
    """Lanes, and the other ends."""
    pairs = [socket.socketpair() for _ in range(count)]
    keys = LaneKeys(bytes(16), bytes(16))
    lanes = [OpenLane(lane.detach(), keys, 0) for lane, _ in pairs]
    return lanes, [end for _, end in pairs]


def is_open(lane):
    try:
        os.fstat(lane.fd)
    except OSError:
        return False
    return True


@pytest.fixture
def node():
    made = Node(7)
    yield made
    made.close()


def test_serving_after_the_instance_has_closed_closes_every_socket(node):
    client, client_ends = sockets(3)
    served, served_ends = sockets(4)
    lanes = LinkLanes(node, 1, client, served)
    node.close()
    with pytest.raises(OSError, match="closed"):
        lanes.serve()
    assert not any(map(is_open, (*client, *served)))
    lanes.close()
    for end in (*client_ends, *served_ends):
        end.close()


def test_closing_before_serving_closes_every_socket(node):
    client, client_ends = sockets(1)
    served, served_ends = sockets(2)
    lanes = LinkLanes(node, 1, client, served)
    lanes.close()
    assert not any(map(is_open, (*client, *served)))
    for end in (*client_ends, *served_ends):
        end.close()


def test_who_waits_for_a_lane_gives_up_when_the_link_ends(node):
    """Before the lanes are closed: what carries the transfer is closed first, and waits for it."""
    client, ends = sockets(1)
    lanes = LinkLanes(node, 1, client, [], on_loss=lambda: None)
    for end in ends:
        end.close()
    outcomes = []

    def ask():
        outcomes.append(lanes.ping(time.monotonic_ns() + 60 * 10**9))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    lanes.end()
    thread.join(10)
    assert not thread.is_alive()
    assert outcomes[-1].code == Code.CANCELLED
    lanes.close()


def test_a_link_that_ends_is_not_kept_by_a_round_of_pings(node):
    """Its end waits for no answer; the other links of the round get their time."""
    (ends, gone), (lasts, silent) = sockets(1), sockets(1)
    links = [LinkLanes(node, number, each, []) for number, each in enumerate((ends, lasts), 1)]
    answers = []

    def ping():
        answers.append(LinkLanes.ping_all(links, time.monotonic_ns() + 60 * 10**9))

    thread = threading.Thread(target=ping)
    thread.start()
    for end in (*gone, *silent):
        assert end.recv(1)  # both pings are under way
    links[0].close()
    assert not answers  # the round goes on
    links[1].close()
    thread.join(10)
    assert answers == [[False, False]]
    for end in (*gone, *silent):
        end.close()


def test_an_operation_that_has_waited_for_a_lane_has_more_opened(node):
    """As many as the link may have, once."""
    owner = Node(8)
    keys = LaneKeys(bytes(16), bytes(16))
    client, serving = (OpenLane(end.detach(), keys, 0) for end in socket.socketpair())
    losses = []
    far = LinkLanes(owner, 1, [], [serving])
    lanes = LinkLanes(node, 1, [client], [], lambda: losses.append(lanes.missing()[0]), most=4)
    nothing = np.zeros(1, np.uint64)
    soon = time.monotonic_ns() + 10**10
    transfer = Transfer(False, Plan.of(nothing, nothing, nothing + 8), NO_REF, (9, 9), soon)
    answer = lanes.ask_checksum(transfer)
    assert lanes.ping(time.monotonic_ns() + 10**6).code == Code.TIMEOUT
    assert losses == []
    far.serve()
    answer()  # which has had the only lane
    for _ in range(2):
        assert lanes.ping(time.monotonic_ns() + 10**10).code == Code.OK
    assert losses == [3]
    lanes.close()
    far.close()
    owner.close()


class Interrupted(Exception):
    """Raised by a signal handler."""


def interrupted(lanes):
    def handle(number, frame):
        raise Interrupted

    earlier = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    try:
        with pytest.raises(Interrupted):
            lanes.ping(time.monotonic_ns() + 60 * 10**9)
    finally:
        signal.signal(signal.SIGALRM, earlier)


def timed_out(lanes):
    assert lanes.ping(time.monotonic_ns() + 10_000_000).code == Code.TIMEOUT


def unanswered(lanes):
    assert LinkLanes.ping_all([lanes], time.monotonic_ns() + 10_000_000) == [False]


@pytest.mark.parametrize("lose", [timed_out, interrupted, unanswered])
def test_a_lane_that_an_operation_has_cost_is_asked_for_at_once(node, lose):
    """Not by the next operation that needs it, nor by the next heartbeat."""
    client, ends = sockets(2)
    losses = []
    lanes = LinkLanes(node, 1, client, [], on_loss=lambda: losses.append(lanes.count))
    lose(lanes)
    assert losses == [1]
    assert lanes.missing() == (1, 0)
    lanes.close()
    for end in ends:
        end.close()


def test_lanes_that_arrive_after_the_end_of_the_link_are_closed(node):
    lanes = LinkLanes(node, 1, [], [])
    lanes.close()
    client, client_ends = sockets(1)
    served, served_ends = sockets(1)
    lanes.add(client, served)
    assert not any(map(is_open, (*client, *served)))
    for end in (*client_ends, *served_ends):
        end.close()


def test_a_watch_sees_answers_requests_and_lost_lanes(node):
    """Of both directions: what the peer answers, and what it asks of this end."""
    far = Node(8)
    keys = LaneKeys(bytes(16), bytes(16))
    pairs = [socket.socketpair() for _ in range(3)]
    near_ends, far_ends = (
        [OpenLane(s.detach(), keys, 0) for s in ends] for ends in zip(*pairs, strict=True)
    )
    near = LinkLanes(node, 1, near_ends[:2], near_ends[2:])
    peer = LinkLanes(far, 1, far_ends[2:], far_ends[:2])
    for end in (near, peer):
        end.serve()
    silent, ends = sockets(1)
    watch = LaneWatch([near, LinkLanes(node, 2, silent, [])], ping=None)
    seen = [watch.look(prune=True)[0].tolist()]
    for asks in (near, peer):
        assert asks.ping(time.monotonic_ns() + 10**10).code == Code.OK
        seen.append(watch.look(prune=True)[0].tolist())
    assert seen == [[0, 0], [1, 0], [2, 0]]
    assert watch.look(prune=True)[1] == []
    ends[0].close()
    assert watch.look(prune=False)[1] == []
    assert watch.look(prune=True)[1] == [1]
    assert watch.look(prune=False)[1] == [1]
    peer.close()
    eventually(lambda: watch.look(prune=True)[1] == [0, 1])
    near.close()
    assert LaneWatch([near], ping=None).look(prune=True)[0].tolist() == [0]
    far.close()


class _HeapUse(ctypes.Structure):
    """What mallinfo2(3) returns: ten numbers, of which the eighth is the bytes in use."""

    _fields_ = [("used" if i == 7 else f"number_{i}", ctypes.c_size_t) for i in range(10)]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="not glibc")
def test_an_idle_lane_takes_little_memory(node):
    """A process may have ten thousand of them; buffers are for those in use."""
    heap_use = ctypes.CDLL(None).mallinfo2
    heap_use.restype = _HeapUse
    count = 40
    client, client_ends = sockets(count)
    served, served_ends = sockets(count)
    gc.collect()
    before = heap_use().used
    lanes = LinkLanes(node, 1, client, served)
    lanes.serve()
    eventually(lambda: node.lane_server.link_lanes(1) == count)
    assert (heap_use().used - before) / count < 2000
    lanes.close()
    for end in (*client_ends, *served_ends):
        end.close()
