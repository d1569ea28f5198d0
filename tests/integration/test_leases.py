"""Leases: what readers are granted, what owners see, and how leases end."""

import threading
import time

import numpy as np
import pytest

from llm_datadist import BlocksCacheKey
from llm_datadist.leases import Lease, LeaseEnd
from llm_datadist.testing import PeerGroup
from support.instances import (
    Side,
    eventually,
    failing,
    finalize,
    link,
    linked_sides,
    succeeds_or,
)
from support.setup import info_of

LONG_MS = 60_000
PEER_LOST = "peer|lost"
KEEPS_WORKERS = pytest.mark.leaves_resources("threads of the module's instances wait for more")


@pytest.fixture(scope="module")
def backend():
    """Leases travel on the control connection: the data path makes no difference."""
    return "auto"


@pytest.fixture
def ends(sides):
    """The lease ends that the callback of the first side got."""
    told = []
    sides[0].manager.on_lease_end(told.append)
    yield told
    sides[0].manager.on_lease_end(None)


def leased(held):
    return held.side.manager.leased_blocks(held.cache)


@KEEPS_WORKERS
def test_blocks_are_leased_until_the_release(sides, ends):
    owner, user = sides
    held = owner.blocks(1, key=0)
    assert leased(held) == frozenset()
    with user.manager.lease(owner.blocks_key(), [5, 1, 1], ttl_ms=LONG_MS) as lease:
        assert isinstance(lease, Lease)
        assert lease.active
        assert (lease.cluster_id, lease.cache_key) == (1, BlocksCacheKey(1))
        assert lease.blocks == (5, 1, 1)
        assert leased(held) == {1, 5}
    assert not lease.active
    eventually(lambda: ends)
    assert ends == [LeaseEnd(2, held.id, (1, 5), "released")]
    assert leased(held) == frozenset()
    lease.release()
    lease.release()


def test_either_side_can_lease_from_the_other(sides):
    owner, user = sides
    mine, yours = owner.blocks(1, key=0), user.blocks(2, key=0)
    with user.manager.lease(owner.blocks_key(), [1]), owner.manager.lease(user.blocks_key(), [2]):
        assert (leased(mine), leased(yours)) == ({1}, {2})


@pytest.mark.parametrize("unlinker", [0, 1])
def test_an_unlink_by_either_side_ends_leases(unlinker):
    owner, user = sides = linked_sides("auto")
    told = []
    try:
        held = owner.blocks(1, key=0)
        owner.manager.on_lease_end(told.append)
        lease = user.manager.lease(owner.blocks_key(), [3], ttl_ms=LONG_MS)
        side, other = sides[unlinker], sides[1 - unlinker]
        side.instance.unlink_clusters([info_of(cluster_id=other.id)])
        assert leased(held) == frozenset()
        assert not lease.active
        eventually(lambda: told)
        assert told == [LeaseEnd(2, held.id, (3,), "peer lost")]
        with failing("LLM_LINK_FAILED", "renew", peer=1):
            lease.renew()
        lease.release()
        link(user.instance, owner.address)
        assert leased(held) == frozenset()
        with user.manager.lease(owner.blocks_key(), [4]):
            assert leased(held) == {4}
    finally:
        finalize(*sides)


@KEEPS_WORKERS
def test_many_leases_at_once(sides, ends):
    """Granted, renewed and released from several threads; each end is reported once."""
    owner, user = sides
    held = owner.blocks(1, key=0, units=64, words=8)
    errors = []

    def work(number):
        try:
            for _ in range(4):
                leases = [
                    user.manager.lease(owner.blocks_key(), [number, other], ttl_ms=LONG_MS)
                    for other in range(10)
                ]
                assert leased(held) >= {number, *range(10)}
                for lease in leases:
                    lease.renew()
                for lease in leases:
                    lease.release()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20, 25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    eventually(lambda: len(ends) == 200)
    assert leased(held) == frozenset()
    assert {end.reason for end in ends} == {"released"}


def test_a_lease_of_very_many_blocks(sides):
    owner, user = sides
    held = owner.blocks(key=0, tensors=1, units=300_000, words=1)
    with user.manager.lease(owner.blocks_key(), list(range(199_999, -1, -1))):
        assert leased(held) == set(range(200_000))
    with user.manager.lease(owner.blocks_key()):
        assert len(leased(held)) == 300_000
    with failing("LLM_PARAM_INVALID", "lease", "200001"):
        user.manager.lease(owner.blocks_key(), list(range(200_001)))


@KEEPS_WORKERS
def test_a_slow_callback_holds_up_nobody(sides):
    owner, user = sides
    held = owner.blocks(1, key=0)
    entered, go_on, told = threading.Event(), threading.Event(), []

    def callback(end):
        entered.set()
        assert go_on.wait(20)
        told.append(end.blocks)

    owner.manager.on_lease_end(callback)
    try:
        user.manager.lease(owner.blocks_key(), [1]).release()
        assert entered.wait(10)
        for block in (2, 3):
            user.manager.lease(owner.blocks_key(), [block]).release()
            eventually(lambda: not leased(held))
        user.instance.check_link_status(1)
    finally:
        go_on.set()
    eventually(lambda: told == [(1,), (2,), (3,)])
    owner.manager.on_lease_end(None)


def read(member, ttl_ms):
    """Body: lease blocks of the group's owner, and wait."""
    side = Side(2, "auto", listen=False)
    link(side.instance, member.wait_for("owner"))
    side.manager.lease(BlocksCacheKey(1), [1, 2], ttl_ms=ttl_ms)
    member.set_event("leased")
    member.wait_end()
    finalize(side)


def own(member):
    """Body: own a cache that can be leased, and wait."""
    side = Side(1, "auto")
    held = side.blocks(1, key=0)
    member.set_event("owner", list(side.address))
    member.wait_end()
    assert leased(held) == frozenset()
    finalize(side)


@pytest.mark.expects_log(PEER_LOST)
def test_a_killed_reader_has_no_lease():
    owner, told = Side(1, "auto"), []
    try:
        held = owner.blocks(1, key=0)
        owner.manager.on_lease_end(told.append)
        with PeerGroup() as group:
            group.set_event("owner", list(owner.address))
            peer = group.start(read, LONG_MS)
            group.wait_for("leased")
            assert leased(held) == {1, 2}
            peer.kill()
            peer.wait()
            eventually(lambda: not leased(held))
        eventually(lambda: told)
        assert told == [LeaseEnd(2, held.id, (1, 2), "peer lost")]
    finally:
        finalize(owner)


@pytest.mark.expects_log(PEER_LOST)
def test_the_lease_of_a_frozen_reader_expires():
    owner, told = Side(1, "auto"), []
    try:
        held = owner.blocks(1, key=0)
        owner.manager.on_lease_end(told.append)
        with PeerGroup() as group:
            group.set_event("owner", list(owner.address))
            peer = group.start(read, 1000)
            group.wait_for("leased")
            peer.freeze()
            eventually(lambda: told)
            assert told == [LeaseEnd(2, held.id, (1, 2), "expired")]
            assert leased(held) == frozenset()
            peer.thaw()
    finally:
        finalize(owner)


@pytest.mark.expects_log(PEER_LOST)
def test_a_dead_or_frozen_owner_does_not_hold_up_readers():
    user = Side(2, "auto", listen=False, sync_kv_timeout=300)
    try:
        with PeerGroup() as group:
            peer = group.start(own)
            link(user.instance, group.wait_for("owner"))
            key = BlocksCacheKey(1)
            lease = user.manager.lease(key, [1], ttl_ms=LONG_MS)
            peer.freeze()
            start = time.monotonic()
            for operation, call in (
                ("renew", lease.renew),
                ("lease", lambda: user.manager.lease(key, [2])),
            ):
                with failing("LLM_TIMEOUT", operation, "300 ms", peer=1):
                    call()
            lease.release()
            assert time.monotonic() - start < 3
            peer.thaw()
            # The lease that no caller got was released before it was granted.
            eventually(lambda: succeeds_or("LLM_TIMEOUT", user.manager.lease, key, [3]))
            lease = user.manager.lease(key, [1], ttl_ms=LONG_MS)
            peer.kill()
            peer.wait()
            eventually(lambda: not lease.active)
            with failing("LLM_LINK_FAILED", "renew", peer=1):
                lease.renew()
            lease.release()
            with failing("LLM_NOT_YET_LINK", "lease", peer=1):
                user.manager.lease(key)
    finally:
        finalize(user)


def test_a_lease_in_step_with_pulls(sides):
    """What leases are for: nothing is reused that a reader still needs."""
    owner, user = sides
    held = owner.blocks(1, key=0, tensors=2)
    target = user.blocks(tensors=2)
    before = held.data.copy()
    with user.manager.lease(owner.blocks_key(), [0, 1]):
        free = [block for block in range(8) if block not in leased(held)]
        held.data[:, free] = 0
        user.manager.pull_blocks(owner.blocks_key(), target.cache, [0, 1], [0, 1])
    assert np.array_equal(target.data[:, :2], before[:, :2])
