"""Where members meet: candidates, ports, listeners."""

import socket

import pytest

from llm_datadist._types import RegisterMemStatus

from .conftest import await_true, free_base_port, rank_table

OK, PREPARING, FAILED = RegisterMemStatus
PAIR = {10: 0, 20: 1}
#: Of a network that this machine does not have (RFC 5737).
ELSEWHERE = "192.0.2.1"


def devices(*addresses):
    return [
        {"device_id": f"{rank}", "device_ip": address, "rank_id": f"{rank}"}
        for rank, address in enumerate(addresses)
    ]


def both(pair, table):
    low, high = pair
    low_id, high_id = low.link("x", PAIR, table), high.link("x", PAIR, table)
    assert high.settled(high_id) is OK
    assert low.settled(low_id) is OK
    return low.describe(low_id)["listening"], high.describe(high_id)["listening"]


def test_the_port_is_that_of_the_device(pair, base_port):
    listening = both(pair, rank_table())
    assert listening == ([("127.0.0.1", base_port)], [("127.0.0.1", base_port + 1)])


def test_one_listener_serves_all_domains(pair, base_port):
    low, high = pair
    both(pair, rank_table())
    tables = [rank_table(host_ip="127.0.0.1"), rank_table(host_ip="127.0.0.2")]
    for name, table in zip("yz", tables, strict=True):
        low_id, high_id = low.link(name, PAIR, table), high.link(name, PAIR, table)
        assert (high.settled(high_id), low.settled(low_id)) == (OK, OK)
    assert low.describe(1)["listening"] == [("127.0.0.1", base_port)]


def test_the_first_candidate_that_can_be_bound_is_taken(pair, base_port):
    table = rank_table(server_id=ELSEWHERE, device=devices("127.0.0.2", "127.0.0.3"))
    listening = both(pair, table)
    assert listening == ([("127.0.0.2", base_port)], [("127.0.0.3", base_port + 1)])


def test_host_ip_comes_first(pair, base_port):
    listening = both(pair, rank_table(host_ip="127.0.0.9", device=devices("127.0.0.2", "")))
    assert listening == ([("127.0.0.9", base_port)], [("127.0.0.9", base_port + 1)])


@pytest.mark.parametrize("host", ["no.such.host.invalid", "\x00", "256.256.256.256"])
def test_a_host_that_is_unknown_is_passed_over(pair, base_port, host):
    listening = both(pair, rank_table(host_ip=host))
    assert listening == ([("127.0.0.1", base_port)], [("127.0.0.1", base_port + 1)])


def test_loopback_is_the_last_resort_of_one_server(pair, base_port):
    table = rank_table(server_id="node-a", device=devices(ELSEWHERE, ELSEWHERE))
    listening = both(pair, table)
    assert listening == ([("127.0.0.1", base_port)], [("127.0.0.1", base_port + 1)])


def test_ipv6(pair, base_port):
    if not socket.has_ipv6 or not _ipv6_loopback():
        pytest.skip("no IPv6 loopback here")
    listening = both(pair, rank_table(server_id="::1"))
    assert listening == ([("::1", base_port)], [("::1", base_port + 1)])


def _ipv6_loopback():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def test_a_port_that_is_taken_makes_the_next_candidate_be_taken(pair, base_port):
    table = rank_table(host_ip="127.0.0.2", device=devices("127.0.0.4", "127.0.0.5"))
    with socket.create_server(("127.0.0.2", base_port)) as stranger:
        stranger.settimeout(0)
        listening = both(pair, table)
    assert listening == ([("127.0.0.1", base_port)], [("127.0.0.2", base_port + 1)])


def test_another_instance_at_a_candidate_is_passed_over(member, base_port):
    """The dialer's first candidate is an instance without this domain."""
    table = rank_table(host_ip="127.0.0.2")
    other = member(77, listen=("127.0.0.2", base_port))
    pair = member(10), member(20)
    listening = both(pair, table)
    assert listening[0] == [("127.0.0.1", base_port)]
    assert other.peers() == []


def test_a_port_that_is_taken_for_a_moment_costs_no_domain(pair, base_port):
    low, high = pair
    with socket.create_server(("127.0.0.1", base_port)) as stranger:
        stranger.settimeout(0)
        low_id, high_id = low.link("x", PAIR, rank_table()), high.link("x", PAIR, rank_table())
        await_true(lambda: high.describe(high_id)["peers"][0]["note"])
        assert (low.query(low_id), high.query(high_id)) == (PREPARING, PREPARING)
        facts = low.describe(low_id)
        assert f"127.0.0.1 port {base_port}" in facts["listen_problem"]
        assert facts["listening"] == []
    assert (high.settled(high_id), low.settled(low_id)) == (OK, OK)
    assert low.describe(low_id)["listening"] == [("127.0.0.1", base_port)]


@pytest.mark.expects_log("domain 'x' .* failed: time limit .*cannot listen")
def test_a_port_that_stays_taken_is_named_at_the_time_limit(member, base_port):
    low = member(10, link_total_time_s=1)
    with socket.create_server(("127.0.0.1", base_port)):
        low_id = low.link("x", PAIR, rank_table())
        assert low.settled(low_id) is FAILED
    assert f"127.0.0.1 port {base_port}" in low.describe(low_id)["reason"]


@pytest.mark.slow
@pytest.mark.parametrize("slow", ["low", "high"])
def test_a_dial_that_is_answered_is_not_cut(pair, base_port, slow):
    """The first candidate never answers, and the second one needs long to complete the link."""
    low, high = pair
    {"low": low, "high": high}[slow].plane.connect_seconds = 1.3
    table = rank_table(host_ip="127.0.0.2", server_id="127.0.0.1")
    with socket.create_server(("127.0.0.2", base_port)):
        low_id, high_id = low.link("x", PAIR, table), high.link("x", PAIR, table)
        assert (high.settled(high_id), low.settled(low_id)) == (OK, OK)
    assert high.describe(high_id)["peers"][0]["attempts"] == 0
    assert (low.plane.calls["connect"], high.plane.calls["connect"]) == (1, 1)


def test_a_member_that_only_dials_need_not_listen(pair, base_port):
    with socket.create_server(("127.0.0.1", base_port + 1)):
        listening = both(pair, rank_table())
    assert listening == ([("127.0.0.1", base_port)], [])


@pytest.mark.parametrize("first", [10, 20])
def test_a_place_that_members_share_is_left_to_the_lower_rank(member, base_port, first):
    shared = [{"device_id": "0", "rank_id": f"{rank}"} for rank in range(2)]
    members = {cluster_id: member(cluster_id) for cluster_id in sorted(PAIR, reverse=first == 20)}
    ids = {
        cluster_id: each.link("x", PAIR, rank_table(device=shared))
        for cluster_id, each in members.items()
    }
    assert {each.settled(ids[cluster_id]) for cluster_id, each in members.items()} == {OK}
    assert members[10].describe(1)["listening"] == [("127.0.0.1", base_port)]
    assert members[20].describe(1)["listening"] == []


@pytest.mark.expects_log("domain 'x' .* failed: cannot listen for members of higher rank")
def test_a_member_in_the_middle_that_has_no_place_of_its_own_fails_at_once(member):
    devices = [{"device_id": place, "rank_id": f"{rank}"} for rank, place in enumerate("001")]
    middle = member(20)
    made = middle.link("x", {10: 0, 20: 1, 30: 2}, rank_table(device=devices))
    assert middle.query(made) is FAILED
    assert "has no address for this member alone" in middle.describe(made)["reason"]


@pytest.mark.expects_log("without a secret")
def test_the_instances_own_listener_is_used_where_it_fits(member):
    base_port = free_base_port()
    low = member(10, base_port=base_port, listen=("127.0.0.1", base_port))
    high = member(20, base_port=base_port, listen=("0.0.0.0", base_port + 1))
    listening = both((low, high), rank_table())
    assert listening == ([("127.0.0.1", base_port)], [("0.0.0.0", base_port + 1)])


def test_a_member_on_another_device_in_another_domain_is_found(member, base_port):
    low, high = member(10), member(20)
    both((low, high), rank_table())
    table = rank_table(device=_moved())
    low_id, high_id = low.link("y", PAIR, table), high.link("y", PAIR, table)
    assert (high.settled(high_id), low.settled(low_id)) == (OK, OK)
    assert ("127.0.0.1", base_port + 4) in low.describe(low_id)["listening"]


def _moved():
    return [{"device_id": f"{rank + 4}", "rank_id": f"{rank}"} for rank in range(2)]


def test_the_ports_are_free_after_close(member, base_port):
    low = member(10)
    low.link("x", PAIR, rank_table())
    low.close()
    socket.create_server(("127.0.0.1", base_port)).close()
