"""Heartbeats: a frozen or cut-off peer is noticed while idle, a busy one is not taken for dead."""

import ctypes
import threading
import time

import pytest

from llm_datadist import BlocksCacheKey, CacheDesc, DataType, LLMException, LLMStatusCode
from llm_datadist.testing import PeerGroup
from support.instances import Side, eventually, finalize, link, pattern

BACKENDS = ["host", "tcp"]
BEAT = {"heartbeat_ms": 50, "peer_timeout_ms": 600}
TIMEOUT_S = 0.6
NOISE_S = 1.0
SUCCESS = LLMStatusCode.LLM_SUCCESS

pytestmark = pytest.mark.slow
lost = pytest.mark.expects_log("lost: the peer was silent for")


class Far:
    """A peer process with a blocks cache."""

    def __init__(self, group, backend, options):
        self.process = group.start(serve, backend, options)
        self.address = tuple(self.process.receive())
        self.key = BlocksCacheKey(1)

    def freeze(self, seconds=None):
        self.process.freeze()
        if seconds is not None:
            time.sleep(seconds)
            self.thaw()

    def thaw(self):
        self.process.thaw()

    def tell(self, *command):
        self.process.send(list(command))

    def ask(self, *command):
        self.tell(*command)
        return self.process.receive()


def serve(local, backend, options):
    side = Side(1, backend, **options)
    data = pattern((2, 8, 512), 1)
    desc = CacheDesc(2, [8, 512], DataType.DT_UINT64)
    key = BlocksCacheKey(1)
    cache = side.manager.register_blocks_cache(desc, [t.ctypes.data for t in data], key)
    local.send(list(side.address))
    while (command := local.receive()) is not None:
        local.send(_done(side, cache, command))
    finalize(side)


def _done(side, cache, command):
    try:
        match command:
            case ["link", address]:
                link(side.instance, tuple(address))
            case ["links"]:
                return [one.cluster_id for one in side.instance._engine.links.links()]
            case ["push"]:
                side.manager.push_blocks(BlocksCacheKey(2), cache, [1], [0])
            case ["hold the interpreter", seconds]:
                ctypes.PyDLL(None).usleep(int(seconds * 1e6))
            case ["spin", seconds]:
                spin(seconds)
    except LLMException as error:
        return error.status_code.name
    return "done"


def spin(seconds):
    """Keep the interpreter busy from several threads."""
    until = time.monotonic() + seconds

    def turn():
        while time.monotonic() < until:
            sum(range(1000))

    threads = [threading.Thread(target=turn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture
def far(backend):
    """Start peer processes."""
    with PeerGroup() as group:

        def start(**options):
            return Far(group, backend, BEAT | {"sync_kv_timeout": 20_000} | options)

        yield start
        for peer in group.peers:
            if peer.exit is None:
                peer.thaw()
                peer.send(None)


@pytest.fixture
def near(backend):
    """Make the side in this process."""
    sides = []

    def make(**options):
        sides.append(Side(2, backend, **(BEAT | {"sync_kv_timeout": 20_000} | options)))
        return sides[-1]

    yield make
    finalize(*sides)


def link_of(side):
    return side.instance._engine.links.get(1)


def failure_of(side, held, peer):
    """Push a block; return the status and how long that took."""
    began = time.monotonic()
    try:
        side.manager.push_blocks(peer.key, held.cache, [0], [0])
    except LLMException as error:
        return error.status_code, time.monotonic() - began
    return SUCCESS, time.monotonic() - began


@lost
@pytest.mark.parametrize("dialer", ["near", "far"])
def test_a_frozen_peer_loses_its_link_and_can_be_linked_again(near, far, dialer):
    local, remote = near(), far()
    if dialer == "near":
        link(local.instance, remote.address)
    else:
        assert remote.ask("link", list(local.address)) == "done"
    found = link_of(local)
    began = time.monotonic()
    remote.freeze()
    assert found.lost.wait(10)
    assert TIMEOUT_S - 0.2 < time.monotonic() - began < 2 * TIMEOUT_S + NOISE_S
    assert found.died
    assert local.instance._engine.links.links() == []
    remote.thaw()
    eventually(lambda: remote.ask("links") == [])
    link(local.instance, remote.address)
    held = local.blocks(1, tensors=2, words=512)
    assert failure_of(local, held, remote)[0] is SUCCESS


@lost
def test_a_transfer_that_runs_when_the_peer_is_found_silent_ends_with_it(near, far):
    local, remote = near(), far()
    link(local.instance, remote.address)
    held = local.blocks(1, tensors=2, words=512)
    assert failure_of(local, held, remote)[0] is SUCCESS
    remote.freeze()
    status, seconds = failure_of(local, held, remote)
    assert status is LLMStatusCode.LLM_LINK_FAILED
    assert seconds < 2 * TIMEOUT_S + NOISE_S
    assert failure_of(local, held, remote)[0] is LLMStatusCode.LLM_NOT_YET_LINK


def test_a_deadline_before_the_peer_is_found_silent_counts_first(near, far):
    local, remote = near(sync_kv_timeout=100, peer_timeout_ms=60_000), far()
    link(local.instance, remote.address)
    held = local.blocks(1, tensors=2, words=512)
    assert failure_of(local, held, remote)[0] is SUCCESS
    remote.freeze()
    status, seconds = failure_of(local, held, remote)
    assert status is LLMStatusCode.LLM_TIMEOUT
    assert 0.1 <= seconds < 0.2 + NOISE_S
    assert not link_of(local).lost.is_set()


def test_a_peer_that_is_frozen_for_less_keeps_its_link(near, far):
    local, remote = near(peer_timeout_ms=20_000), far(peer_timeout_ms=20_000)
    link(local.instance, remote.address)
    for _ in range(3):
        remote.freeze(0.3)
    assert remote.ask("links") == [2]
    assert not link_of(local).lost.is_set()


def test_who_was_frozen_itself_does_not_take_its_peers_for_dead(near, far):
    local, remote = near(heartbeat_ms=0), far()
    link(local.instance, remote.address)
    for _ in range(3):
        remote.freeze(2 * TIMEOUT_S)
        time.sleep(0.2)
        assert remote.ask("links") == [2]


def test_without_heartbeats_silence_is_not_noticed(near, far):
    local, remote = near(heartbeat_ms=0, peer_timeout_ms=100), far(heartbeat_ms=0)
    link(local.instance, remote.address)
    remote.freeze(2 * TIMEOUT_S)
    assert not link_of(local).lost.is_set()
    assert remote.ask("links") == [2]


def test_idle_links_live_on(near, far):
    local, remote = near(), far()
    link(local.instance, remote.address)
    found = link_of(local)
    assert not found.lost.wait(3 * TIMEOUT_S)
    assert (
        found.conversation.num_received == 0
    )  # lanes answered, which is the peer's native threads
    assert remote.ask("links") == [2]


@pytest.mark.parametrize("how", ["hold the interpreter", "spin"])
def test_a_peer_whose_interpreter_is_busy_lives(near, far, how):
    local, remote = near(), far(peer_timeout_ms=60_000)
    link(local.instance, remote.address)
    remote.tell(how, 4 * TIMEOUT_S)
    assert not link_of(local).lost.wait(4 * TIMEOUT_S)
    held = local.blocks(1, tensors=2, words=512)
    assert failure_of(local, held, remote)[0] is SUCCESS
    assert remote.process.receive() == "done"


def test_a_busy_interpreter_here_does_not_make_peers_dead(near, far):
    local, remote = near(), far(peer_timeout_ms=60_000)
    link(local.instance, remote.address)
    spin(2 * TIMEOUT_S)
    ctypes.PyDLL(None).usleep(int(2 * TIMEOUT_S * 1e6))
    assert not link_of(local).lost.wait(0.3)
    assert remote.ask("links") == [2]


def test_an_instance_linked_to_itself_needs_no_heartbeat(near):
    local = near()
    link(local.instance, local.address)
    found = local.instance._engine.links.get(2)
    ctypes.PyDLL(None).usleep(int(2 * TIMEOUT_S * 1e6))
    assert not found.lost.wait(TIMEOUT_S)
