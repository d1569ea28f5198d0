"""Members that die and come back, before and after OK, and dials that are not confirmed."""

import pytest

from llm_datadist._links import DomainHello, LinkTable
from llm_datadist._options.settings import Config
from llm_datadist._types import RegisterMemStatus

from .conftest import Nothing, await_true, rank_table

OK, PREPARING, FAILED = RegisterMemStatus
PAIR = {10: 0, 20: 1}
TRIO = {10: 0, 20: 1, 30: 2}
TABLE = rank_table()


def linked(member, comm_id, peer_id):
    peers = {facts["cluster_id"]: facts for facts in member.describe(comm_id)["peers"]}
    return peers[peer_id]["linked"]


@pytest.mark.expects_log("link to cluster .0 .* lost")
@pytest.mark.parametrize("dies", [10, 20])
def test_a_member_that_dies_before_ok_and_restarts_costs_no_domain(member, dies):
    members = {cluster_id: member(cluster_id) for cluster_id in PAIR}
    ids = {each: members[each].link("x", TRIO, TABLE) for each in members}
    stays = 30 - dies
    await_true(lambda: linked(members[stays], ids[stays], dies))
    members[dies].die()
    await_true(lambda: not linked(members[stays], ids[stays], dies))
    assert members[stays].query(ids[stays]) is PREPARING
    for cluster_id in (dies, 30):
        members[cluster_id] = member(cluster_id)
        ids[cluster_id] = members[cluster_id].link("x", TRIO, TABLE)
    assert {each: members[each].settled(ids[each]) for each in members} == dict.fromkeys(TRIO, OK)


@pytest.mark.expects_log("link to cluster .0 .* lost")
@pytest.mark.parametrize("dies", [10, 20])
def test_a_member_that_dies_after_ok_is_accepted_when_the_others_call_again(member, dies):
    """The others need not unlink first: a failed domain frees its name."""
    members = {cluster_id: member(cluster_id) for cluster_id in PAIR}
    ids = {each: members[each].link("x", PAIR, TABLE) for each in members}
    assert {members[each].settled(ids[each]) for each in members} == {OK}
    stays = 30 - dies
    members[dies].die()
    await_true(lambda: members[stays].query(ids[stays]) is FAILED)
    members[dies] = member(dies)
    ids[dies] = members[dies].link("x", PAIR, TABLE)
    again = members[stays].link("x", PAIR, TABLE)
    assert members[stays].settled(again) is OK
    assert members[dies].settled(ids[dies]) is OK
    assert members[stays].query(ids[stays]) is FAILED
    members[stays].unlink(ids[stays])
    assert members[stays].query(again) is OK


@pytest.mark.slow
@pytest.mark.expects_log("domain 'x' .* failed: time limit")
def test_a_failed_domain_that_is_unlinked_late_does_not_touch_its_successor(member):
    low, high = member(10, link_total_time_s=1), member(20)
    low_id, high_id = low.link("x", TRIO, TABLE), high.link("x", TRIO, TABLE)
    assert low.settled(low_id) is FAILED
    again = low.link("x", TRIO, TABLE)
    await_true(lambda: linked(low, again, 20) and linked(high, high_id, 10))
    low.unlink(low_id)
    assert (low.peers(), high.peers()) == ([20], [10])
    last = member(30)
    last_id = last.link("x", TRIO, TABLE)
    assert {low.settled(again), high.settled(high_id), last.settled(last_id)} == {OK}


@pytest.mark.expects_log("link to cluster .0 .* lost")
def test_a_link_that_its_dialer_does_not_confirm_is_no_link(member, base_port):
    low = member(10)
    low_id = low.link("x", PAIR, TABLE)
    stranger = LinkTable(20, Config(lanes_per_link=1), 5, Nothing())
    stranger.start(None)
    try:
        hello = DomainHello(name="x", ranks=PAIR, rank=1, token=5, acceptor=10)
        result = stranger.dial_peer([("127.0.0.1", base_port)], 5000, domain=hello)
        assert result.is_ok
        assert low.peers() == [20]
        assert low.query(low_id) is PREPARING
        stranger.drop(result.link, "it was cut")
        await_true(lambda: low.peers() == [])
        assert low.query(low_id) is PREPARING
    finally:
        stranger.close()
    high = member(20)
    high_id = high.link("x", PAIR, TABLE)
    assert (high.settled(high_id), low.settled(low_id)) == (OK, OK)


@pytest.mark.expects_log("domain 'x' .* failed")
def test_a_member_that_fails_before_it_is_linked_to_all_fails_the_others(member):
    """20 cannot reach 30, which calls with another name; 10 has all that it needs."""
    low, mid = member(10), member(20, link_total_time_s=1)
    high = member(30)
    ids = low.link("x", TRIO, TABLE), mid.link("x", TRIO, TABLE)
    high_id = high.link("x", {10: 0, 30: 2}, TABLE)
    assert high.settled(high_id) is FAILED
    assert mid.settled(ids[1]) is FAILED
    assert low.settled(ids[0]) is FAILED
