"""Domains between processes, through the public interface."""

import json
import random
import secrets
import signal
import time

import numpy as np
import pytest

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    DataType,
    LLMException,
    LLMStatusCode,
    RegisterMemStatus,
)
from llm_datadist.testing import Killed, PeerGroup
from support.setup import options_of, started

DESC = CacheDesc(2, [16, 1024], DataType.DT_FLOAT)


def rank_table(members):
    devices = [{"device_id": f"{rank}", "rank_id": f"{rank}"} for rank in range(members)]
    return json.dumps({"version": "1.0", "server_list": [{"server_id": "a", "device": devices}]})


def member(cluster_id, base_port, seconds=20):
    return started(cluster_id, listen=None, link_base_port=base_port, link_total_time=seconds)


def settled(instance, comm_id, seconds=20):
    deadline = time.monotonic() + seconds
    while (status := instance.query_register_mem_status(comm_id)) is RegisterMemStatus.PREPARING:
        assert time.monotonic() < deadline, instance.describe_domain(comm_id)
        time.sleep(0.005)
    return status.name


def registered(instance, value):
    tensors = [np.full((16, 1024), value, np.float32) for _ in range(2)]
    cache = instance.cache_manager.register_blocks_cache(
        DESC, [tensor.ctypes.data for tensor in tensors], BlocksCacheKey(instance.cluster_id)
    )
    return cache, tensors


def pull_from_everybody(near, rank, members, base_port):
    """Link all members in one domain; return what was pulled from each of the others."""
    with member(100 + rank, base_port) as instance:
        cache, tensors = registered(instance, rank)
        ranks = {100 + other: other for other in range(members)}
        time.sleep(random.random() / 4)  # members start when they start
        comm_id = instance.link("all", ranks, rank_table(members))
        assert settled(instance, comm_id) == "OK"
        near.barrier("linked", members)
        values = []
        for other in range(members):
            if other != rank:
                key = BlocksCacheKey(100 + other)
                # Block 0 is never written, so that peers find the owner's value in it.
                instance.cache_manager.pull_blocks(key, cache, [0], [1])
                values.append(float(tensors[1][1, 7]))
        near.barrier("pulled", members)
        instance.unlink(comm_id)
        return values


def link_many(near, cluster_id, base_port, seed):
    """Link 40 domains in an order of its own; return how each came out."""
    with member(cluster_id, base_port) as instance:
        names = [f"domain {number}" for number in range(40)]
        random.Random(seed).shuffle(names)
        ids = [instance.link(name, {1: 0, 2: 1}, rank_table(2)) for name in names]
        statuses = [settled(instance, comm_id) for comm_id in ids]
        near.barrier("settled", 2)
        return statuses


def serve(near, base_port):
    instance = member(1, base_port)
    comm_id = instance.link("pair", {1: 0, 2: 1}, rank_table(2))
    assert settled(instance, comm_id) == "OK"
    near.set_event("linked")
    near.wait_end()


def free_base_port():
    """A multiple of 8 below the range of outgoing connections; other tests take other ones."""
    return 12000 + 8 * secrets.randbelow(2000)


@pytest.fixture(scope="module", autouse=True)
def _io_threads():
    """The native core's I/O threads start with the process's first lanes, and stay."""
    base_port = free_base_port()
    with member(1, base_port) as low, member(2, base_port) as high:
        ids = [each.link("first", {1: 0, 2: 1}, rank_table(2)) for each in (low, high)]
        assert [settled(low, ids[0]), settled(high, ids[1])] == ["OK", "OK"]


@pytest.mark.slow
@pytest.mark.parametrize("members", [2, 3, 4])
def test_members_pull_from_each_other(members):
    base_port = free_base_port()
    with PeerGroup() as group:
        peers = [
            group.start(pull_from_everybody, rank, members, base_port) for rank in range(members)
        ]
        for rank, peer in enumerate(peers):
            others = [float(other) for other in range(members) if other != rank]
            assert peer.value() == others


@pytest.mark.slow
def test_two_processes_in_different_orders():
    base_port = free_base_port()
    with PeerGroup() as group:
        peers = [group.start(link_many, number, base_port, number) for number in (1, 2)]
        assert [peer.value() for peer in peers] == [["OK"] * 40] * 2


@pytest.mark.slow
@pytest.mark.expects_log("link to cluster 1 .* lost", "the link to cluster 1 is gone")
def test_a_killed_member_fails_the_domain_and_can_come_back():
    base_port = free_base_port()
    with PeerGroup() as group, member(2, base_port) as instance:
        for comm_id in (1, 2):
            server = group.start(serve, base_port)
            assert instance.link("pair", {1: 0, 2: 1}, rank_table(2)) == comm_id
            assert settled(instance, comm_id) == "OK"
            group.wait_for("linked")
            server.kill()
            assert server.wait() == Killed(signal.SIGKILL)
            deadline = time.monotonic() + 1
            while instance.query_register_mem_status(comm_id=comm_id) is RegisterMemStatus.OK:
                assert time.monotonic() < deadline
            assert instance.query_register_mem_status(comm_id) is RegisterMemStatus.FAILED
            instance.unlink(comm_id)


def test_finalize_with_domains_that_prepare():
    instance = member(2, free_base_port(), seconds=0)
    for number in range(40):
        instance.link(f"{number}", {1: 0, 2: 1}, rank_table(2))
    begun = time.monotonic()
    instance.finalize()
    assert time.monotonic() - begun < 2
    with pytest.raises(RuntimeError):
        instance.link("x", {1: 0, 2: 1}, rank_table(2))


def test_ids_restart_after_finalize():
    instance = member(1, free_base_port())
    assert instance.link("x", {1: 0, 2: 1}, rank_table(2)) == 1
    instance.finalize()
    instance.init(options_of(listen=None))
    with pytest.raises(LLMException) as raised:
        instance.query_register_mem_status(1)
    assert raised.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
    instance.finalize()
