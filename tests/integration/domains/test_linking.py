"""Domains that come about: orders of calls, numbers of members and domains, sharing of links."""

import random
import time

import pytest

from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._types import RegisterMemStatus
from support.setup import info_of

from .conftest import await_true, free_base_port, rank_table

OK, PREPARING = RegisterMemStatus.OK, RegisterMemStatus.PREPARING
PAIR = {10: 0, 20: 1}
TABLE = rank_table()


def test_both_orders_of_the_two_calls(pair):
    low, high = pair
    low_id, high_id = low.link("first", PAIR, TABLE), high.link("first", PAIR, TABLE)
    assert (low_id, high_id) == (1, 1)
    assert high.settled(high_id) is OK
    assert low.settled(low_id) is OK
    high_id, low_id = high.link("second", PAIR, TABLE), low.link("second", PAIR, TABLE)
    assert (low_id, high_id) == (2, 2)
    assert low.settled(comm_id=low_id) is OK
    assert high.settled(comm_id=high_id) is OK


def test_the_dialer_waits_for_a_peer_that_starts_later(member):
    high = member(20)
    high_id = high.link("late", PAIR, TABLE)
    await_true(lambda: high.describe(high_id)["peers"][0]["attempts"] > 2)
    assert high.query(high_id) is PREPARING
    low = member(10)
    await_true(lambda: high.describe(high_id)["peers"][0]["attempts"] > 4)
    assert high.query(high_id) is PREPARING
    low_id = low.link("late", PAIR, TABLE)
    assert high.settled(high_id) is OK
    assert low.settled(low_id) is OK


def test_the_dialer_waits_for_a_peer_that_has_other_domains(pair):
    low, high = pair
    assert low.link("one", PAIR, TABLE) == 1
    for comm_id, name in enumerate(("two", "one"), 1):
        assert high.link(name, PAIR, TABLE) == comm_id
    assert high.settled(2) is OK
    await_true(lambda: "'two'" in high.describe(1)["peers"][0]["note"])
    assert high.query(1) is PREPARING
    low_id = low.link("two", PAIR, TABLE)
    assert high.settled(1) is OK
    assert low.settled(low_id) is OK


def test_link_returns_at_once_whatever_the_peers_do(member):
    high = member(20)
    begun = time.monotonic()
    for number in range(60):
        high.link(f"domain {number}", {100 + number: 0, 20: 1}, TABLE)
    assert time.monotonic() - begun < 5
    assert {high.query(comm_id) for comm_id in range(1, 61)} == {PREPARING}


def test_dozens_of_domains_in_opposite_orders(pair):
    low, high = pair
    names = [f"domain {number}" for number in range(48)]
    low_ids = {name: low.link(name, PAIR, TABLE) for name in names}
    high_ids = {name: high.link(name, PAIR, TABLE) for name in reversed(names)}
    assert {low.settled(comm_id) for comm_id in low_ids.values()} == {OK}
    assert {high.settled(comm_id) for comm_id in high_ids.values()} == {OK}
    assert low.plane.calls["connect"] == high.plane.calls["connect"] == 1


def test_a_caller_that_waits_for_some_before_it_calls_the_others(pair):
    """What waits at the dialer, more than set-ups run at once, must not keep out the others."""
    low, high = pair
    names = [f"domain {number}" for number in range(20)]
    high_ids = {name: high.link(name, PAIR, TABLE) for name in reversed(names)}
    for name in names:
        assert low.settled(low.link(name, PAIR, TABLE)) is OK
        assert high.settled(high_ids[name]) is OK


def test_more_peers_than_set_ups_run_at_once(member):
    """One dialer and 20 acceptors, which come up last to first."""
    devices = [{"device_id": f"{rank}", "rank_id": f"{rank}"} for rank in range(21)]
    table = rank_table(device=devices)
    ports = free_base_port(21)
    high = member(900, base_port=ports)
    maps = [{rank + 1: rank, 900: 20} for rank in range(20)]
    ids = [high.link(f"{ranks}", ranks, table) for ranks in maps]
    for ranks, comm_id in reversed(list(zip(maps, ids, strict=True))):
        low = member(next(iter(ranks)), base_port=ports)
        low.link(f"{ranks}", ranks, table)
        assert high.settled(comm_id) is OK


@pytest.mark.parametrize("count", [3, 4])
def test_domains_of_more_members(member, count):
    ranks = {10 * (rank + 1): rank for rank in range(count)}
    members = [member(cluster_id) for cluster_id in ranks]
    random.Random(count).shuffle(members)
    ids = [each.link("all", ranks, TABLE) for each in members]
    assert {each.settled(comm_id) for each, comm_id in zip(members, ids, strict=True)} == {OK}
    assert all(len(each.peers()) == count - 1 for each in members)


def test_pairs_of_overlapping_domains_share_their_links(member):
    members = [member(10), member(20), member(30)]
    maps = [{10: 0, 20: 1}, {10: 0, 20: 1, 30: 2}, {20: 1, 30: 2}, {10: 0, 30: 2}]
    ids = [
        (each, each.link(f"map {number}", ranks, TABLE))
        for number, ranks in enumerate(maps)
        for each, own in zip(members, (10, 20, 30), strict=True)
        if own in ranks
    ]
    assert {each.settled(comm_id) for each, comm_id in ids} == {OK}
    assert [each.plane.calls["connect"] for each in members] == [2, 2, 2]


def test_ranks_need_not_count_from_0(member):
    low, high = member(2**64 - 1), member(0)
    ranks = {2**64 - 1: 1, 0: 3}
    low_id, high_id = low.link("x", ranks, TABLE), high.link("x", ranks, TABLE)
    assert high.settled(high_id) is OK
    assert low.settled(low_id) is OK


def test_a_link_made_by_link_clusters_is_used_and_outlives_the_domain(member):
    low, high = member(10, listen=("127.0.0.1", 0)), member(20)
    assert high.links.link_clusters([info_of(low.links, 10)], 5000)[0].is_ok
    low_id, high_id = low.link("x", PAIR, TABLE), high.link("x", PAIR, TABLE)
    assert high.settled(high_id) is OK
    assert low.settled(low_id) is OK
    assert high.plane.calls["connect"] == 1
    high.unlink(high_id)
    low.unlink(low_id)
    assert (low.peers(), high.peers()) == ([20], [10])


def test_a_link_made_by_link_clusters_makes_up_for_a_table_without_addresses(member):
    low, high = member(10, listen=("127.0.0.1", 0)), member(20)
    assert high.links.link_clusters([info_of(low.links)], 5000)[0].is_ok
    low_id, high_id = low.link("x", PAIR, "{}"), high.link("x", PAIR, "{}")
    assert high.settled(high_id) is OK
    assert low.settled(low_id) is OK


def test_members_with_a_secret(member):
    low, high = member(10, secret=b"s"), member(20, secret=b"s")
    low_id, high_id = low.link("x", PAIR, TABLE), high.link("x", PAIR, TABLE)
    assert high.settled(high_id) is OK
    assert low.settled(low_id) is OK


def test_512_domains_and_no_more(pair):
    low, _ = pair
    assert [low.link(f"{number}", PAIR, TABLE) for number in range(512)] == [*range(1, 513)]
    with pytest.raises(LLMException) as raised:
        low.link("one more", PAIR, TABLE)
    assert raised.value.status_code is LLMStatusCode.LLM_CLUSTER_NUM_EXCEED_LIMIT
    low.unlink(7)
    assert low.link("one more", PAIR, TABLE) == 513


def test_comm_ids_count_from_1_per_life(member):
    for _ in range(2):
        low = member(10)
        assert [low.link(name, PAIR, TABLE) for name in "ab"] == [1, 2]
        low.close()


@pytest.mark.parametrize("comm_id", [0, 2, -1, 2**70])
def test_unknown_comm_ids(pair, comm_id):
    low, _ = pair
    low.link("x", PAIR, TABLE)
    for call in (low.query, low.unlink, low.describe):
        with pytest.raises(LLMException) as raised:
            call(comm_id)
        assert raised.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


@pytest.mark.parametrize("comm_id", [None, "1", 1.0, True])
def test_comm_ids_of_wrong_types(pair, comm_id):
    low, _ = pair
    low.link("x", PAIR, TABLE)
    for call in (low.query, low.unlink, low.describe):
        with pytest.raises(TypeError, match="comm_id"):
            call(comm_id)


def test_a_refused_link_has_no_effect(pair):
    low, _ = pair
    with pytest.raises(LLMException):
        low.link("x", {20: 1}, TABLE)
    assert low.describe(low.link("x", PAIR, TABLE))["comm_id"] == 1


def test_a_name_in_use_is_refused(pair):
    low, _ = pair
    low.link("x", PAIR, TABLE)
    with pytest.raises(LLMException, match="domain 1") as raised:
        low.link("x", PAIR, TABLE)
    assert raised.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


def test_after_close_link_says_so(pair):
    low, _ = pair
    low.close()
    with pytest.raises(LLMException) as raised:
        low.link("x", PAIR, TABLE)
    assert raised.value.status_code is LLMStatusCode.LLM_ENGINE_FINALIZED
