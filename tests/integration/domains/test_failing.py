"""Domains that do not come about, or come to an end: disagreement, time limits, death, reuse."""

import queue
import socket
import time

import pytest

from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._types import RegisterMemStatus

from .conftest import await_true, rank_table

OK, PREPARING, FAILED = RegisterMemStatus
PAIR = {10: 0, 20: 1}
TABLE = rank_table()


@pytest.mark.expects_log("domain 'x' .* failed: .*cluster 10 .*cluster 20")
@pytest.mark.parametrize(
    ("low_ranks", "high_ranks"),
    [
        (PAIR, {10: 0, 20: 2}),
        (PAIR, {10: 0, 20: 1, 30: 2}),
        (PAIR, {10: 0, 15: 1, 20: 2}),
    ],
)
def test_other_maps_fail_at_both_ends(pair, low_ranks, high_ranks):
    low, high = pair
    low_id, high_id = low.link("x", low_ranks, TABLE), high.link("x", high_ranks, TABLE)
    assert high.settled(high_id) is FAILED
    assert low.settled(low_id) is FAILED
    for facts in (low.describe(low_id), high.describe(high_id)):
        assert facts["status"] == "FAILED"
        assert str(low_ranks) in facts["reason"]
        assert str(high_ranks) in facts["reason"]
    assert (low.peers(), high.peers()) == ([], [])


@pytest.mark.expects_log("domain 'x' .* failed")
def test_another_id_than_the_map_says_fails_at_both_ends(pair):
    low, high = pair
    low_id, high_id = low.link("x", PAIR, TABLE), high.link("x", {11: 0, 20: 1}, TABLE)
    assert high.settled(high_id) is FAILED
    assert low.settled(low_id) is FAILED
    assert "{11: 0, 20: 1}" in low.describe(low_id)["reason"]
    assert "{10: 0, 20: 1}" in high.describe(high_id)["reason"]


@pytest.mark.expects_log("domain 'x' .* failed: .*disagree")
@pytest.mark.parametrize("table", ["by rank", "by member"])
def test_members_that_both_accept_find_out_that_they_disagree(member, table):
    """Neither dials: each takes itself for the lower rank. By rank, both want the same address."""
    low, high = member(10, link_total_time_s=6), member(20, link_total_time_s=6)
    turned = {20: 0, 10: 1}
    devices = [{"device_id": "1", "rank_id": "0"}, {"device_id": "0", "rank_id": "1"}]
    other = TABLE if table == "by rank" else rank_table(device=devices)
    low_id, high_id = low.link("x", PAIR, TABLE), high.link("x", turned, other)
    assert (high.settled(high_id), low.settled(low_id)) == (FAILED, FAILED)
    for facts in (low.describe(low_id), high.describe(high_id)):
        assert f"{PAIR}" in facts["reason"]
        assert f"{turned}" in facts["reason"]


@pytest.mark.expects_log("domain 'x' .* failed")
def test_failed_is_final(pair):
    low, high = pair
    low_id, high_id = low.link("x", PAIR, TABLE), high.link("x", {10: 0, 20: 2}, TABLE)
    assert high.settled(high_id) is FAILED
    high.unlink(high_id)
    high_id = high.link("x", PAIR, TABLE)
    await_true(lambda: "failed domain" in high.describe(high_id)["peers"][0]["note"])
    assert (low.query(low_id), high.query(high_id)) == (FAILED, PREPARING)
    low.unlink(low_id)
    low_id = low.link("x", PAIR, TABLE)
    assert high.settled(high_id) is OK
    assert low.settled(low_id) is OK


@pytest.mark.expects_log("domain '.' .* failed: time limit")
def test_other_names_fail_at_the_time_limit_and_name_both(member):
    low, high = member(10, link_total_time_s=1), member(20, link_total_time_s=1)
    low_id, high_id = low.link("x", PAIR, TABLE), high.link("y", PAIR, TABLE)
    begun = time.monotonic()
    assert high.settled(high_id) is FAILED
    assert low.settled(low_id) is FAILED
    assert 0.9 < time.monotonic() - begun < 8
    for facts in (low.describe(low_id), high.describe(high_id)):
        assert "'x'" in str(facts)
        assert "'y'" in str(facts)


@pytest.mark.expects_log("domain 'x' .* failed: time limit")
def test_nobody_there_fails_at_the_time_limit(member):
    low, high = member(10, link_total_time_s=1), member(30, link_total_time_s=1)
    low_id = low.link("x", PAIR, TABLE)
    high_id = high.link("x", {20: 1, 30: 2}, TABLE)
    assert low.query(low_id) is PREPARING
    assert high.settled(high_id) is FAILED
    assert low.settled(low_id) is FAILED
    assert "cannot connect" in high.describe(high_id)["reason"]
    assert "cluster 20 (rank 1)" in low.describe(low_id)["reason"]


@pytest.mark.expects_log("domain 'x' .* failed: time limit")
def test_a_member_that_stays_away_fails_the_domain_of_the_others(member):
    ranks = {10: 0, 20: 1, 30: 2}
    low, high = member(10, link_total_time_s=2), member(20, link_total_time_s=2)
    low_id, high_id = low.link("x", ranks, TABLE), high.link("x", ranks, TABLE)
    await_true(lambda: low.describe(low_id)["peers"][0]["linked"])
    assert (low.query(low_id), high.query(high_id)) == (PREPARING, PREPARING)
    assert (low.settled(low_id), high.settled(high_id)) == (FAILED, FAILED)
    low.unlink(low_id)
    high.unlink(high_id)
    assert (low.peers(), high.peers()) == ([], [])


@pytest.mark.expects_log("domain 'x' .* failed: time limit")
def test_a_silent_acceptor_is_given_up_at_the_time_limit(member, base_port):
    with socket.create_server(("127.0.0.1", base_port)):
        high = member(20, link_total_time_s=1)
        begun = time.monotonic()
        high_id = high.link("x", PAIR, TABLE)
        assert high.settled(high_id) is FAILED
        assert time.monotonic() - begun < 5
        reason = str(high.describe(high_id))
        assert "no answer" in reason
        assert str(base_port) in reason


@pytest.mark.expects_log("domain 'x' .* failed: time limit", "closed:", "refused")
def test_another_secret_fails_at_the_time_limit_and_says_why(member):
    low = member(10, secret=b"a", link_total_time_s=1)
    high = member(20, secret=b"b", link_total_time_s=1)
    low_id, high_id = low.link("x", PAIR, TABLE), high.link("x", PAIR, TABLE)
    assert high.settled(high_id) is FAILED
    assert low.settled(low_id) is FAILED
    assert "secret" in high.describe(high_id)["reason"]


@pytest.mark.expects_log("domain 'x' .* failed: the rank table has no address for rank 0")
def test_a_table_without_the_peer_fails_at_once(member):
    high = member(20)
    devices = [{"device_id": "1", "rank_id": "1"}]
    high_id = high.link("x", PAIR, rank_table(device=devices))
    assert high.settled(high_id) is FAILED


@pytest.mark.expects_log("link to cluster .0 .* lost")
def test_the_loss_of_a_link_fails_the_domain(pair):
    low, high = pair
    low_id, high_id = low.link("x", PAIR, TABLE), high.link("x", PAIR, TABLE)
    assert (high.settled(high_id), low.settled(low_id)) == (OK, OK)
    low.links.drop(low.links.get(20), "it is silent")
    assert low.query(low_id) is FAILED
    assert low.describe(low_id)["reason"] == "the link to cluster 20 is gone: it is silent"


@pytest.mark.parametrize("leave", ["unlink", "close"])
def test_a_peer_that_leaves_ends_its_own_part_only(pair, leave):
    """It may have done its work before this end has asked for the first time."""
    low, high = pair
    low_id, high_id = low.link("x", PAIR, TABLE), high.link("x", PAIR, TABLE)
    assert high.settled(high_id) is OK
    await_true(lambda: low.peers() == [20])
    if leave == "unlink":
        high.unlink(high_id)
    else:
        high.close()
    assert high.peers() == []
    await_true(lambda: low.peers() == [])
    assert low.query(low_id) is OK
    facts = low.describe(low_id)["peers"][0]
    assert not facts["linked"]
    assert facts["note"]
    low.unlink(low_id)
    with pytest.raises(LLMException) as raised:
        low.query(low_id)
    assert raised.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


def test_a_pairs_link_goes_with_its_last_domain(pair):
    low, high = pair
    low_ids = [low.link(name, PAIR, TABLE) for name in "abc"]
    high_ids = [high.link(name, PAIR, TABLE) for name in "abc"]
    assert {high.settled(comm_id) for comm_id in high_ids} == {OK}
    assert {low.settled(comm_id) for comm_id in low_ids} == {OK}
    for low_id, high_id in zip(low_ids[:2], high_ids[:2], strict=True):
        low.unlink(low_id)
        high.unlink(high_id)
    assert (low.query(low_ids[2]), high.query(high_ids[2])) == (OK, OK)
    assert (low.peers(), high.peers()) == ([20], [10])
    low.unlink(low_ids[2])
    assert low.peers() == []
    assert low.plane.calls["disconnect"] == 1
    await_true(lambda: high.peers() == [])
    high.unlink(high_ids[2])


@pytest.mark.parametrize("first", ["low", "high"])
def test_a_name_is_used_again_after_unlink(pair, first):
    low, high = pair
    one, other = (low, high) if first == "low" else (high, low)
    for life in range(1, 4):
        ids = one.link("x", PAIR, TABLE), other.link("x", PAIR, TABLE)
        assert ids == (life, life)
        assert (one.settled(life), other.settled(life)) == (OK, OK)
        one.unlink(life)
        other.unlink(life)


@pytest.mark.expects_log("domain 'x' .* failed")
@pytest.mark.parametrize("first", ["low", "high"])
def test_one_end_is_ahead_by_a_life_of_the_name(pair, first):
    """The other end still has the earlier domain of that name, over a link that stays."""
    low, high = pair
    ids = low.link("other", PAIR, TABLE), high.link("other", PAIR, TABLE)
    assert (low.settled(ids[0]), high.settled(ids[1])) == (OK, OK)
    ahead, behind = (low, high) if first == "low" else (high, low)
    assert (ahead.link("x", PAIR, TABLE), behind.link("x", PAIR, TABLE)) == (2, 2)
    assert (ahead.settled(2), behind.settled(2)) == (OK, OK)
    ahead.unlink(2)
    assert ahead.link("x", PAIR, TABLE) == 3
    if ahead is high:
        await_true(lambda: ahead.describe(3)["peers"][0]["attempts"] > 0)
        assert behind.query(2) is FAILED
    assert ahead.query(3) is PREPARING
    behind.unlink(2)
    assert behind.link("x", PAIR, TABLE) == 3
    assert (ahead.settled(3), behind.settled(3)) == (OK, OK)
    assert low.plane.calls["connect"] == 1


def test_unlink_while_preparing(pair):
    low, high = pair
    high.unlink(high.link("x", PAIR, TABLE))
    low_id = low.link("x", PAIR, TABLE)
    assert low.query(low_id) is PREPARING
    assert high.link("x", PAIR, TABLE) == 2
    assert (high.settled(2), low.settled(low_id)) == (OK, OK)


def test_domains_that_come_and_go_at_both_ends(pair):
    """Unlinking of one domain crosses the set-up of the next one over the same link."""
    low, high = pair
    last = None
    for life in range(30):
        ids = low.link(f"{life}", PAIR, TABLE), high.link(f"{life}", PAIR, TABLE)
        if last is not None:
            high.unlink(last[1])
        assert (high.settled(ids[1]), low.settled(ids[0])) == (OK, OK)
        if last is not None:
            low.unlink(last[0])
        last = ids
    assert (high.query(last[1]), low.query(last[0])) == (OK, OK)


def test_unlink_in_a_log_handler_of_the_librarys_own_thread_changes_nothing(member):
    """It would have to wait for its own thread."""
    low = member(10)
    comm_id = low.link("x", PAIR, TABLE)
    caught = queue.SimpleQueue()

    def unlink():
        try:
            low.unlink(comm_id)
        except LLMException as error:
            caught.put(error)

    low.links._control.post(unlink)
    error = caught.get(timeout=10)
    assert (error.status_code, error.operation) == (LLMStatusCode.LLM_FAILED, "unlink")
    assert low.query(comm_id) is PREPARING
    low.unlink(comm_id)
