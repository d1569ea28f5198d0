"""Lanes that are lost while the peer lives are opened anew: the next transfer works, unrelinked."""

import contextlib
import os
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from llm_datadist import BlocksCacheKey, CacheDesc, DataType, LLMException, LLMStatusCode
from llm_datadist.testing import PeerGroup
from support.instances import Side, eventually, finalize, link, linked_sides, pattern

BACKENDS = ["host", "tcp"]
TIMEOUT = LLMStatusCode.LLM_TIMEOUT
LANES = 2  # of a new link, in each direction
ROUNDS = 10
SHORT_MS = 60
HEALED_S = 5.0

pytestmark = pytest.mark.slow


class Far:
    """A peer process with a blocks cache; it can be frozen, and moves blocks as it is told."""

    def __init__(self, group, backend, options):
        self.peer = group.start(serve, backend, options)
        self.address = tuple(self.peer.receive())
        self.key = BlocksCacheKey(1)

    def ask(self, *command):
        self.peer.send(list(command))
        return self.peer.receive()


def serve(local, backend, options):
    side = Side(1, backend, **options)
    data = pattern((2, 8, 512), 1)
    desc = CacheDesc(2, [8, 512], DataType.DT_UINT64)
    key = BlocksCacheKey(1)
    cache = side.manager.register_blocks_cache(desc, [t.ctypes.data for t in data], key)
    local.send(list(side.address))
    remote = BlocksCacheKey(2)
    while (command := local.receive()) is not None:
        local.send(_done(side, cache, remote, command))
    finalize(side)


def _done(side, cache, remote, command):
    try:
        match command:
            case ["link", address]:
                link(side.instance, tuple(address))
            case ["push"]:
                side.manager.push_blocks(remote, cache, [1], [0])
            case ["pull"]:
                side.manager.pull_blocks(remote, cache, [0], [2])
            case ["lanes"]:
                return side.instance.describe_link(2)["lanes"]
    except LLMException as error:
        return error.status_code.name
    return "done"


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture
def group():
    with PeerGroup() as members:
        yield members
        for peer in members.peers:
            if peer.exit is None:
                peer.thaw()
                peer.send(None)


@pytest.fixture(params=["near dials", "far dials"])
def pair(request, group, backend):
    """A side here, a peer process, linked by either; transfers here take SHORT_MS at most."""
    far = Far(group, backend, {"sync_kv_timeout": SHORT_MS})
    near = Side(2, backend, sync_kv_timeout=SHORT_MS)
    if request.param == "near dials":
        link(near.instance, far.address)
    else:
        assert far.ask("link", list(near.address)) == "done"
    yield near, far
    finalize(near)


def lanes(side, peer=1):
    return side.instance.describe_link(peer)["lanes"]


def push(near, held, far):
    """Push a block; return the status. Pushes need a lane whatever the backend."""
    try:
        near.manager.push_blocks(far.key, held.cache, [0], [0])
    except LLMException as error:
        return error.status_code
    return LLMStatusCode.LLM_SUCCESS


def until(status, call, *arguments, seconds=HEALED_S):
    """Call until it ends so."""
    deadline = time.monotonic() + seconds
    while (last := call(*arguments)) is not status:
        assert time.monotonic() < deadline, last


def test_a_thawed_peer_is_used_at_once_after_many_timeouts(pair):
    near, far = pair
    held = near.blocks(1, tensors=2, words=512)
    assert push(near, held, far) is LLMStatusCode.LLM_SUCCESS
    far.peer.freeze()
    for _ in range(ROUNDS):
        began = time.monotonic()
        assert push(near, held, far) is TIMEOUT
        assert time.monotonic() - began < SHORT_MS / 1000 + 0.1 + 0.4  # noise
    assert lanes(near) == 0
    far.peer.thaw()
    until(LLMStatusCode.LLM_SUCCESS, push, near, held, far)
    eventually(lambda: lanes(near) == LANES)
    near.manager.pull_blocks(far.key, held.cache, [1], [3])
    assert np.array_equal(held.data[:, 3], pattern((2, 8, 512), 1)[:, 1])
    near.blocks(key=0, tensors=2, words=512)
    assert far.ask("push") == far.ask("pull") == "done"


def test_the_next_transfer_waits_for_the_lanes_and_needs_no_second_call(group, backend):
    far = Far(group, backend, {})
    near = Side(2, backend, sync_kv_timeout=SHORT_MS)
    patient = Side(3, backend, sync_kv_timeout=8000)
    for side in (near, patient):
        link(side.instance, far.address)
    held, waiting = near.blocks(1, tensors=2, words=512), patient.blocks(2, tensors=2, words=512)
    far.peer.freeze()
    for _ in range(LANES + 1):
        assert push(near, held, far) is TIMEOUT
    assert lanes(near) == 0
    far.peer.thaw()
    began = time.monotonic()
    assert push(patient, waiting, far) is LLMStatusCode.LLM_SUCCESS
    until(LLMStatusCode.LLM_SUCCESS, push, near, held, far, seconds=2)
    assert time.monotonic() - began < 3
    finalize(near, patient)


def control_fd(side, peer):
    connection = side.instance._engine.links.get(peer).conversation.connection
    return connection._writer.get_extra_info("socket").fileno()


def break_lanes(port, *controls):
    """Break the lanes to a listening port; `controls` are connections there that are none."""
    for path in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):  # not connected, closed by now
            fd = int(path.name)
            if fd in controls or not str(path.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(fd)) as sock:
                if sock.family != socket.AF_UNIX and port in {
                    sock.getsockname()[1],
                    sock.getpeername()[1],
                }:
                    sock.shutdown(socket.SHUT_RDWR)


def missing(side, peer):
    """Lanes that are missing: on which the side asks, and which it serves."""
    return side.instance._engine.links.get(peer).data.lanes.missing()


@pytest.fixture
def both(backend):
    """Make two linked sides of this process, the second of which dials."""
    made = []

    def make(**options):
        made.extend(linked_sides(backend, **options))
        return made

    yield make
    finalize(*made)


def broken(near, far):
    """Break all lanes between two sides of this process, not their control connection."""
    break_lanes(near.address[1], control_fd(near, 2), control_fd(far, 1))


def test_lanes_that_break_by_themselves_are_replaced_while_nothing_is_asked(both):
    near, far = both(heartbeat_ms=50)
    for _ in range(6):
        broken(near, far)
        eventually(lambda: missing(near, 2) == missing(far, 1) == (0, 0))
    held, own = near.blocks(1, key=0), far.blocks()
    far.manager.push_blocks(near.blocks_key(), own.cache, [0], [1])
    assert not held.data[:, 1].any()


def test_broken_lanes_cost_the_next_transfer_nothing_but_time(both):
    near, far = both(heartbeat_ms=0)
    held, own = near.blocks(1, key=0), far.blocks(2, key=0)
    for _ in range(3):
        broken(near, far)
        far.manager.push_blocks(near.blocks_key(), own.cache, [0], [1])
        broken(near, far)
        near.manager.push_blocks(far.blocks_key(), held.cache, [3], [4])
    assert np.array_equal(held.data[:, 1], own.data[:, 0])
    assert np.array_equal(own.data[:, 4], held.data[:, 3])


@pytest.mark.parametrize("backend", ["tcp"], indirect=True)
@pytest.mark.parametrize("dials", [False, True])
def test_a_large_transfer_has_the_other_lanes_opened(both, dials):
    """By whichever end dialed, at the end that needs them; they are kept as the first ones are."""
    sides = both(lanes_per_link=5)
    asks, asked = sides[::-1] if dials else sides
    held, own = asks.blocks(words=1 << 15), asked.blocks(1, key=0, words=1 << 15)
    everything = list(range(8))
    asks.manager.pull_blocks(asked.blocks_key(), held.cache, everything, everything)
    eventually(lambda: lanes(asks, asked.id) == 5)
    assert lanes(asked, asks.id) == LANES
    broken(*sides)
    asks.manager.pull_blocks(asked.blocks_key(), held.cache, everything, everything)
    eventually(lambda: lanes(asks, asked.id) == 5)
    assert np.array_equal(held.data, own.data)


@pytest.mark.expects_log("lost")
def test_a_dead_peer_ends_what_waits_for_lanes(group, backend):
    far = Far(group, backend, {})
    near = Side(2, backend, sync_kv_timeout=20_000)
    link(near.instance, far.address)
    held = near.blocks(1, tensors=2, words=512)
    assert push(near, held, far) is LLMStatusCode.LLM_SUCCESS
    far.peer.freeze()
    break_lanes(far.address[1], control_fd(near, 1))
    ends = []

    def wait():
        ends.append((push(near, held, far), time.monotonic()))

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    time.sleep(0.2)
    assert not ends
    killed = time.monotonic()
    far.peer.kill()
    waiting.join(5)
    ((status, ended),) = ends
    assert status is LLMStatusCode.LLM_LINK_FAILED
    assert ended - killed < 1
    finalize(near)


def test_finalize_ends_what_waits_for_lanes(group, backend):
    far = Far(group, backend, {})
    near = Side(2, backend, sync_kv_timeout=20_000)
    link(near.instance, far.address)
    held = near.blocks(1, tensors=2, words=512)
    assert push(near, held, far) is LLMStatusCode.LLM_SUCCESS
    far.peer.freeze()
    break_lanes(far.address[1], control_fd(near, 1))
    ends = []
    waiting = threading.Thread(target=lambda: ends.append(push(near, held, far)), daemon=True)
    waiting.start()
    time.sleep(0.2)
    began = time.monotonic()
    finalize(near)
    waiting.join(5)
    assert time.monotonic() - began < 2
    assert ends == [LLMStatusCode.LLM_ENGINE_FINALIZED]
