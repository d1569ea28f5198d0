"""The same-host data path: whom it reads, and what it does with what cannot be read."""

import errno
import os
import time

import msgspec
import numpy as np
import pytest

from llm_datadist._backends import host
from llm_datadist._backends.base import Unavailable
from llm_datadist._backends.host import HostBackend, HostChannel, HostMetadata, SegmentMetadata
from llm_datadist._backends.node import Node
from llm_datadist._backends.outcomes import Code, Outcome
from llm_datadist._backends.transfer import PeerEndpoint, Transfer
from llm_datadist._plan import Plan
from llm_datadist._types.refs import NO_REF

INCARNATION = 7
OK, FAULT = Outcome(Code.OK), Outcome(Code.REMOTE_FAULT, errno.EFAULT, 0, 8)
ABSENT = Outcome(Code.SYSTEM, errno.EAGAIN)
REFUSED = Outcome(Code.SYSTEM, errno.EPERM)
LOCAL_FAULT = Outcome(Code.LOCAL_FAULT, errno.EFAULT, 0, 8)


class Peer:
    """Whom a backend of this process would link to: an instance of this process."""

    def __init__(self, node, *, any_user=False):
        self.backend = HostBackend(node, (), any_user=any_user)
        self.metadata = msgspec.msgpack.decode(self.backend.describe(1), type=HostMetadata)
        link_ref, self.proof = node.open_guard(), os.urandom(16)
        node.show_proof(link_ref, self.proof)
        self.link_ref = link_ref
        self.attached = []

    def attach_host(self, reader):
        self.attached.append(reader)

    def connect(self, *, incarnation=INCARNATION, metadata=None, **changed):
        described = msgspec.structs.replace(self.metadata, **changed)
        data = msgspec.msgpack.encode(described) if metadata is None else metadata
        peer = PeerEndpoint(2, incarnation, self.link_ref, self.proof, {"host": data})
        return self.backend.connect(peer, self)


@pytest.fixture
def node():
    made = Node(INCARNATION)
    yield made
    made.close()
    made.release()


def test_an_instance_of_this_process_is_read_through_its_page(node):
    peer = Peer(node)
    channel = peer.connect()
    (reader,) = peer.attached
    assert channel.version() == reader.version() == node.version()
    channel.close()


def test_a_closed_channel_holds_nothing_of_its_peer(node):
    """Whatever keeps the channel: an exception, a lease, a link that was lost."""
    peer = Peer(node)
    channel = peer.connect()
    peer.attached.clear()
    channel.close()
    channel.close()
    assert channel.version() is channel.read_log(0, 8) is None
    assert channel.guard(0) == 0
    channel.forget(4096, 4096)
    assert "HostPeer" not in {type(held).__name__ for held in vars(channel).values()}


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"boot_id": "another"}, "another host"),
        ({"boot_id": ""}, "/proc cannot be read at the peer"),
        ({"pid_namespace": "another"}, "another process-id namespace"),
        ({"pid": 1}, "does not run in the process that it names"),
        ({"incarnation": INCARNATION + 1}, "does not run in the process that it names"),
        ({"page_address": 4096}, "its memory cannot be read"),
        ({"metadata": b"\xc1"}, "description cannot be read"),
    ],
)
def test_a_process_that_may_not_be_the_peers_is_not_read(node, changed, text):
    peer = Peer(node)
    with pytest.raises(Unavailable, match=text):
        peer.connect(**changed)
    assert peer.attached == []


@pytest.mark.parametrize("any_user", [False, True])
def test_a_process_of_another_user_is_read_if_it_has_the_secret(node, monkeypatch, any_user):
    monkeypatch.setattr(host, "_is_own_user", lambda pid: False)
    peer = Peer(node, any_user=any_user)
    if any_user:
        peer.connect().close()
        return
    with pytest.raises(Unavailable, match="another user's"):
        peer.connect()


class Link:
    """A channel whose reader, lanes and local check give the outcomes that are set, else OK."""

    def __init__(self, **outcomes):
        self.outcomes = {name: list(each) for name, each in outcomes.items()}
        self.calls = []
        peer = PeerEndpoint(2, INCARNATION, (4, 41), bytes(16))
        self.channel = HostChannel(self, peer, self, self)

    def _next(self, name):
        self.calls.append(name)
        left = self.outcomes.get(name)
        return left.pop(0) if left else OK

    def touch(self, *arguments):
        return self._next("touch")

    def probe(self, transfer):
        return self._next("probe")

    def push(self, transfer):
        return self._next("push")

    def write(self, transfer):
        return self._next("lanes")

    def read_and_sum(self, *arguments):
        raise AssertionError("nothing is checked")

    def read(self, *arguments):
        return self._next("lanes" if len(arguments) == 1 else "read")

    def gather(self, transfer, link_ref, deadline_ns):
        assert link_ref == (4, 41)
        self.gather_left_ns = deadline_ns - time.monotonic_ns()
        return self._next("gather")

    def run(self, *, write=False, local_ref=(3, 31), cache_ref=(5, 51), gather=False):
        words = np.array([8], np.uint64)
        transfer = Transfer(
            write, Plan.of(words, words, words), local_ref, cache_ref, 10**18, gather=gather
        )
        self.calls.clear()
        return self.channel.run(transfer).code


def test_a_read_that_succeeds_needs_nothing_else():
    link = Link()
    assert link.run() == Code.OK
    assert link.calls == ["read"]


def test_absent_pages_are_brought_in_by_their_owner_and_read_again():
    link = Link(read=[ABSENT])
    assert link.run() == Code.OK
    assert link.calls == ["read", "probe", "read"]
    link = Link(read=[ABSENT, ABSENT])
    assert link.run() == Code.OK
    assert link.calls == ["read", "probe", "read", "lanes"]


def test_memory_is_at_fault_if_its_owner_cannot_read_it_either():
    link = Link(read=[FAULT], probe=[FAULT])
    assert link.run() == Code.REMOTE_FAULT
    assert link.calls == ["read", "probe"]


@pytest.mark.parametrize("outcomes", [[FAULT], [ABSENT, FAULT]])
def test_a_cache_that_only_its_owner_can_read_uses_the_lanes_from_then_on(outcomes):
    link = Link(read=outcomes)
    assert link.run() == Code.OK
    assert link.calls[-1] == "lanes"
    assert link.run() == Code.OK
    assert link.calls == ["lanes"]
    assert link.run(cache_ref=(5, 53)) == Code.OK
    assert link.calls == ["read"], "of another generation"
    assert "1 caches that only their owner can read" in link.channel.describe()["reads"]


def test_a_process_that_may_not_be_read_is_read_over_the_lanes():
    link = Link(read=[REFUSED])
    assert link.run() == Code.OK
    assert link.calls == ["read", "lanes"]
    assert "Operation not permitted" in link.channel.describe()["reads"]


@pytest.mark.parametrize("code", [Code.GONE, Code.TIMEOUT, Code.LOCAL_FAULT, Code.PEER_DEAD])
def test_other_outcomes_of_a_read_are_final(code):
    link = Link(read=[Outcome(code)])
    assert link.run() == code
    assert link.calls == ["read"]


def test_what_the_owner_gathers_is_not_read_again():
    link = Link()
    assert link.channel.gathers(np.array([8], np.uint64))
    assert link.run(gather=True) == Code.OK
    assert link.calls == ["gather"]
    assert link.channel.describe()["gathered_bytes"] == 8
    assert link.gather_left_ns < 1e9, "though the deadline is far"


@pytest.mark.parametrize("code", [Code.GONE, Code.LOCAL_GONE, Code.CLOSED, Code.CANCELLED])
def test_what_ends_a_gathering_as_it_would_end_a_read_is_final(code):
    link = Link(gather=[Outcome(code)])
    assert link.run(gather=True) == code
    assert link.calls == ["gather"]
    assert link.channel.gathers(np.array([8], np.uint64))


@pytest.mark.parametrize(
    "code",
    [
        Code.TIMEOUT,
        Code.PEER_DEAD,
        Code.REMOTE_FAULT,
        Code.DENIED,
        Code.PROTOCOL,
        Code.SYSTEM,
        Code.NO_LANE,
    ],
)
def test_a_gathering_that_fails_is_read_and_reads_do_without_for_a_while(code):
    """A read needs no thread of the owner, and tells what is at fault."""
    link = Link(gather=[Outcome(code)])
    assert link.run(gather=True) == Code.OK
    assert link.calls == ["gather", "read"]
    assert not link.channel.gathers(np.array([8], np.uint64))


def test_a_mapped_pool_is_not_gathered():
    link = Link()
    link.map_segment = lambda *_: None
    link.channel.map_segment(SegmentMetadata(5, 4096, 4096, (6, 61)))
    for addresses, allowed in (([0, 4095], True), ([8192], True), ([0, 4096], False), ([], False)):
        assert link.channel.gathers(np.array(addresses, np.uint64)) is allowed, addresses


def test_whether_local_memory_is_at_fault_is_checked_and_not_believed():
    link = Link(push=[LOCAL_FAULT], touch=[LOCAL_FAULT])
    assert link.run(write=True) == Code.LOCAL_FAULT
    assert link.calls == ["push", "touch"]
    link = Link(push=[LOCAL_FAULT])
    assert link.run(write=True) == Code.OK
    assert link.calls == ["push", "touch", "lanes"]
    assert link.run(write=True) == Code.OK
    assert link.calls == ["lanes"]


def test_absent_local_pages_are_brought_in_and_pushed_again():
    link = Link(push=[ABSENT])
    assert link.run(write=True) == Code.OK
    assert link.calls == ["push", "touch", "push"]
    link = Link(push=[ABSENT], touch=[Outcome(Code.TIMEOUT)])
    assert link.run(write=True) == Code.TIMEOUT


def test_pushes_that_the_peer_cannot_fetch_are_sent():
    link = Link(push=[REFUSED])
    assert link.run(write=True) == Code.OK
    assert link.calls == ["push", "lanes"]
    assert "Operation not permitted" in link.channel.describe()["pushes"]
    assert link.run(write=True, local_ref=NO_REF) == Code.OK
    assert link.calls == ["lanes"], "of memory without an entry"
