"""link_clusters between live instances."""

from __future__ import annotations

import re
import socket
import threading

import pytest

from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._links import state

OK = LLMStatusCode.LLM_SUCCESS
FAILED = LLMStatusCode.LLM_LINK_FAILED


def ok(*results):
    assert [result.status for result in results] == [OK] * len(results), results
    return results[0].link


def test_both_ends_have_the_link_when_the_call_returns(end):
    a, b = end(1), end(2)
    link = ok(*a.link(b))
    assert (a.linked(), b.linked()) == ([2], [1])
    back = b.table.get(1)
    assert (link.incarnation, back.incarnation) == (b.incarnation, a.incarnation)
    assert (link.address, back.address) == (b.address, a.address)
    assert link.alive
    assert back.alive
    a.table.check(2, 1000)
    b.table.check(1, 1000)


def test_the_delegates_get_each_others_endpoints_and_paired_lanes(end):
    a, b = end(1, lanes_per_link=3), end(2, lanes_per_link=5)
    ok(*a.link(b))
    (peer_a, endpoint_a, clients_a, servers_a) = a.plane.only()
    (peer_b, endpoint_b, clients_b, servers_b) = b.plane.only()
    assert (peer_a.cluster_id, peer_b.cluster_id) == (2, 1)
    assert (peer_a.dialed, peer_b.dialed) == (True, False)
    assert endpoint_a.startswith(str(id(b.plane)).encode())
    assert endpoint_b.startswith(str(id(a.plane)).encode())
    for clients, servers in ((clients_a, servers_b), (clients_b, servers_a)):
        assert len(clients) == len(servers) == 2
        for index, (client, server) in enumerate(zip(clients, servers, strict=True)):
            client.send(bytes([index]))
            server.setblocking(True)
            assert server.recv(8) == bytes([index])
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert not client.get_inheritable()


@pytest.mark.slow
def test_mutual_linking_makes_one_link_every_time(end):
    a, b = end(1), end(2)
    for _ in range(30):
        barrier = threading.Barrier(2)
        results = {}

        def link(one, other, results=results, barrier=barrier):
            barrier.wait()
            results[one] = one.link(other)[0]

        threads = [
            threading.Thread(target=link, args=pair, daemon=True) for pair in ((a, b), (b, a))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        ok(results[a], results[b])
        assert results[a].link is a.table.get(2)
        assert results[b].link is b.table.get(1)
        assert len(a.plane.links) == len(b.plane.links) == 1
        ok(*a.unlink(b))
        b.plane.wait(0)


@pytest.mark.parametrize("incarnations", [(10, 20), (20, 10)])
def test_the_accepting_end_dials_before_the_dialing_end_is_through(end, eventually, incarnations):
    a, b = end(1, incarnation=incarnations[0]), end(2, incarnation=incarnations[1])
    a.plane.gate.clear()
    results = []
    dialing = threading.Thread(target=lambda: results.extend(a.link(b)), daemon=True)
    dialing.start()
    eventually(lambda: b.linked() == [1])  # and at a it is still being connected
    link = b.table.get(1)
    back = threading.Thread(target=lambda: results.extend(b.link(a)), daemon=True)
    back.start()
    back.join(0.1)
    a.plane.gate.set()
    dialing.join(5)
    back.join(5)
    ok(*results)
    assert len(results) == 2
    assert b.table.get(1) is link
    assert link.alive
    assert len(a.plane.links) == len(b.plane.links) == 1


def linking(one, other, timeout_ms=20_000, **named):
    """Link on a thread; the results are its attribute."""
    thread = threading.Thread(
        target=lambda: thread.results.extend(one.link(other, timeout_ms=timeout_ms, **named)),
        daemon=True,
    )
    thread.results = []
    thread.start()
    return thread


def test_a_link_that_another_call_is_setting_up(end, too_late):
    """The call waits and shares the outcome, if its timeout allows."""
    a, b = end(1), end(2)
    a.plane.gate.clear()
    calls = [linking(a, b)]
    assert a.plane.entered.wait(20)
    calls += [linking(a, b), linking(a, b, cluster_id=2)]
    words = r"127.0.0.1:\d+: the link to cluster 2 is being set up by another call; "
    assert re.match(words, too_late(a, b).reason)
    a.plane.gate.set()
    for call in calls:
        call.join(20)
        assert ok(*call.results) is a.table.get(2)
    assert len(a.plane.links) == len(b.plane.links) == 1


def test_threads_that_link_one_peer_share_the_link(end):
    a, b = end(1), end(2)
    for _ in range(3):
        calls = [linking(a, b) for _ in range(8)]
        for call in calls:
            call.join(20)
        link = a.table.get(2)
        assert [ok(*call.results) for call in calls] == [link] * 8
        ok(*a.unlink(b))


def test_an_outcome_is_shared_by_calls_for_the_same_cluster_id_only(end):
    a, b = end(1), end(2)
    a.plane.gate.clear()
    first = linking(a, b)
    assert a.plane.entered.wait(20)
    other = linking(a, b, cluster_id=3)
    other.join(20)
    assert other.results[0].status is FAILED
    a.plane.gate.set()
    first.join(20)
    ok(*first.results)


def test_a_call_goes_on_when_the_call_that_it_waits_for_fails(end):
    a, b = end(1), end(2)
    a.plane.gate.clear()
    first = linking(a, b, timeout_ms=1000)
    assert a.plane.entered.wait(20)
    second = linking(a, b)
    first.join(20)
    assert first.results[0].status is LLMStatusCode.LLM_TIMEOUT
    a.plane.gate.set()
    second.join(20)
    assert ok(*second.results) is a.table.get(2)
    a.plane.wait(1)
    b.plane.wait(1)


def test_a_slow_set_up_is_not_withdrawn_for_a_call_that_waits(end, monkeypatch):
    """The peer has accepted it at the same address, so it is no stranger that stalls."""
    monkeypatch.setattr(state, "STALL_SECONDS", 0.01)
    a, b = end(1), end(2)
    a.plane.gate.clear()
    first = linking(a, b)
    assert a.plane.entered.wait(20)
    second = linking(a, b)
    second.join(0.1)
    a.plane.gate.set()
    for call in (first, second):
        call.join(20)
        assert ok(*call.results) is a.table.get(2)
    assert a.table.get(2).link_id == 1


def test_several_addresses_of_one_instance(end):
    a, b = end(1), end(2)
    extra = b.table.open_listener("127.0.0.2", 0)
    ok(*a.link([b.address, extra]))
    assert len(a.plane.links) == 1
    ok(*a.unlink(extra))
    assert b.linked() == []


@pytest.mark.parametrize("host", ["::1", "localhost"])
def test_other_ways_to_write_a_host(end, host):
    try:
        b = end(2, listen=(host, 0))
    except OSError:
        pytest.skip(f"no {host} here")
    a = end(1)
    ok(*a.link((host, b.address[1]), local=None))
    b.table.check(1, 1000)
    ok(*a.unlink((host, b.address[1])))
    assert b.linked() == []


def test_the_local_ip_is_the_source_address(end):
    a, b = end(1, listen=None), end(2)
    ok(*a.link(b, local="127.0.0.3"))
    assert b.table.get(1).address[0] == "127.0.0.3"


@pytest.mark.expects_log("local ip .* cannot be the source")
@pytest.mark.parametrize("local", ["203.0.113.7", "::1"])
def test_a_local_ip_that_is_not_ours_is_ignored(end, local):
    a, b = end(1), end(2)
    ok(*a.link(b, local=local))


@pytest.mark.parametrize("local", [None, "0.0.0.0"])
def test_no_local_ip_in_particular(end, local):
    a, b = end(1), end(2)
    ok(*a.link(b, local=local))


def test_links_are_counted_per_cluster_id(end):
    a, b = end(1), end(2)
    generations = []
    for _ in range(3):
        generations.append(ok(*a.link(b)).generation)
        ok(*a.unlink(b))
    assert generations == [1, 2, 3]


def test_describe(end):
    a, b = end(1), end(2)
    ok(*a.link(b))
    facts = a.table.describe(2)
    assert facts["peer"] == "{}:{}".format(*b.address)
    assert facts["holders"] == ["clusters"]
    assert facts["state"] == "LINKED"
    with pytest.raises(LLMException, match="no link"):
        a.table.describe(3)
