"""The state of a domain: what links a pair, what costs an attempt, what is final."""

import pytest

from llm_datadist._errors import LLMStatusCode
from llm_datadist._links import Leave
from llm_datadist._types import RegisterMemStatus

from .conftest import LIMIT, FakeLink, hello, make_domain

OK, PREPARING, FAILED = RegisterMemStatus
PAIR = {10: 0, 20: 1}
TRIO = {10: 0, 20: 1, 30: 2}


def accept(domain, peer_id, token=7, ranks=PAIR):
    """Let a peer dial and join; return the link."""
    said = hello(ranks, ranks[peer_id], token, domain.cluster_id)
    assert domain.refusal(said, peer_id, 0.0) is None
    link = FakeLink(peer_id)
    domain.enter(domain.pairs[peer_id], link)
    return link


def leave(token=7, *, complete=False, reason=""):
    return Leave(name="x", token=token, complete=complete, reason=reason)


def test_a_dial_that_is_accepted_is_no_link_before_it_joins(events):
    domain = make_domain(10, PAIR, events)
    assert domain.refusal(hello(PAIR, 1), 20, 0.0) is None
    assert domain.status(0.0) is PREPARING
    domain.enter(domain.pairs[20], FakeLink(20))
    assert domain.status(0.0) is OK


@pytest.mark.parametrize("died", [True, False])
def test_a_link_that_ends_before_the_others_are_linked_costs_an_attempt(events, died):
    domain = make_domain(20, TRIO, events)
    link = FakeLink(10)
    domain.enter(domain.pairs[10], link)
    link.end("the peer closed the connection", died=died)
    assert domain.status(0.0) is PREPARING
    assert domain.pairs[10].link is None
    assert events.dialed == [10]
    assert "the peer closed" in domain.pairs[10].note


def test_a_member_that_restarts_before_ok_is_accepted_again(events):
    domain = make_domain(10, TRIO, events)
    accept(domain, 20, token=1, ranks=TRIO).end("killed")
    accept(domain, 20, token=2, ranks=TRIO)
    accept(domain, 30, ranks=TRIO)
    assert domain.status(0.0) is OK
    assert events.left == []


def test_a_member_that_calls_again_before_ok_is_accepted_over_a_link_that_stays(events):
    domain = make_domain(10, TRIO, events)
    accept(domain, 20, token=1, ranks=TRIO)
    assert domain.refusal(hello(TRIO, 1, token=2), 20, 0.0) is None
    accept(domain, 30, ranks=TRIO)
    assert domain.status(0.0) is PREPARING
    domain.enter(domain.pairs[20], FakeLink(20))
    assert domain.status(0.0) is OK


@pytest.mark.expects_log
def test_the_death_of_a_member_after_ok_fails_the_domain_and_tells_the_others(events):
    domain = make_domain(10, TRIO, events)
    links = {peer: accept(domain, peer, ranks=TRIO) for peer in (20, 30)}
    links[20].end("killed")
    assert domain.status(0.0) is FAILED
    assert domain.failure == "the link to cluster 20 is gone: killed"
    told = dict(events.left)
    assert told[links[30]] == leave(reason=domain.failure)
    assert events.dialed == []


def test_ok_does_not_need_a_query_to_last(events):
    """A member may do its work and leave before this one has asked for the first time."""
    domain = make_domain(10, PAIR, events)
    link = accept(domain, 20)
    assert domain.on_leave(leave(complete=True), 20, link)
    link.end("unlinked by the peer", died=False)
    assert domain.status(LIMIT) is OK


def test_a_complete_member_that_leaves_counts_as_linked(events):
    domain = make_domain(10, TRIO, events)
    link = accept(domain, 20, ranks=TRIO)
    assert domain.on_leave(leave(complete=True), 20, link)
    link.end("unlinked by the peer", died=False)
    accept(domain, 30, ranks=TRIO)
    assert domain.status(0.0) is OK


def test_a_member_that_leaves_before_it_was_complete_must_be_linked_again(events):
    domain = make_domain(20, TRIO, events)
    pair, link = domain.pairs[10], FakeLink(10)
    domain.enter(pair, link)
    assert not domain.on_leave(leave(domain.pairs[10].hello.token, reason="time limit"), 10, link)
    assert domain.status(0.0) is PREPARING
    assert events.dialed == [10]
    assert "time limit" in pair.note


def test_a_pair_that_is_linked_again_is_not_ended_by_the_peers_earlier_domain(events):
    """The peer has failed and called again, and unlinks its failed domain after that."""
    domain = make_domain(20, TRIO, events)
    pair, link = domain.pairs[10], FakeLink(10)
    domain.enter(pair, link)
    earlier = leave(pair.hello.token, reason="time limit")
    domain.on_leave(earlier, 10, link)
    domain.enter(pair, link)
    accept(domain, 30, ranks=TRIO)
    assert not domain.on_leave(earlier, 10, link)
    assert domain.status(0.0) is OK


@pytest.mark.expects_log("domain 'x' .* failed: cluster 20 has left")
def test_a_member_that_fails_before_it_was_complete_fails_this_end(events):
    domain = make_domain(10, PAIR, events)
    link = accept(domain, 20)
    domain.on_leave(leave(reason="time limit reached"), 20, link)
    assert domain.status(0.0) is FAILED
    assert "time limit reached" in domain.failure


@pytest.mark.parametrize("other", ["token", "link", "peer"])
def test_a_leave_that_does_not_fit_changes_nothing(events, other):
    domain = make_domain(10, PAIR, events)
    link = accept(domain, 20)
    message = leave(8 if other == "token" else 7)
    peer_id = 30 if other == "peer" else 20
    assert not domain.on_leave(message, peer_id, FakeLink(20) if other == "link" else link)
    assert domain.status(0.0) is OK


def test_an_answer_and_a_leave_may_come_together(events):
    """The acceptor entered the link, and left, before this end has recorded the answer."""
    domain = make_domain(20, TRIO, events)
    pair, link = domain.pairs[10], FakeLink(10)
    pair.trial = link
    assert domain.on_leave(leave(domain.pairs[10].hello.token, complete=True), 10, link)
    link.end("unlinked by the peer", died=False)
    domain.enter(pair, link)
    accept(domain, 30, ranks=TRIO)
    assert domain.status(0.0) is OK
    assert events.dialed == []


@pytest.mark.expects_log("domain 'x' .* failed: time limit")
def test_the_time_limit_tells_the_peer_that_was_asked_and_has_not_answered(events):
    domain = make_domain(20, PAIR, events)
    domain.pairs[10].trial = link = FakeLink(10)
    assert domain.status(LIMIT) is FAILED
    [(told, message)] = events.left
    assert told is link
    assert (message.complete, message.token) == (False, domain.pairs[10].hello.token)


@pytest.mark.expects_log("domain 'x' .* failed: time limit .*cannot listen .*in use")
def test_the_time_limit_names_a_port_that_was_never_free(events):
    domain = make_domain(10, PAIR, events)
    domain.listen_problem = "127.0.0.1 port 60000: address already in use"
    assert domain.status(LIMIT - 1) is PREPARING
    assert domain.status(LIMIT) is FAILED


@pytest.mark.expects_log("domain 'x' .* failed: the members .* disagree")
def test_other_values_fail_both_and_name_them(events):
    domain = make_domain(10, PAIR, events)
    refusal = domain.refusal(hello({10: 0, 20: 3}, 3), 20, 0.0)
    assert refusal.status is LLMStatusCode.LLM_PARAM_INVALID
    assert domain.status(0.0) is FAILED
    for text in (refusal.reason, domain.failure):
        assert "{10: 0, 20: 1}" in text
        assert "{10: 0, 20: 3}" in text


def test_other_values_do_not_end_a_domain_that_is_ok(events):
    domain = make_domain(10, PAIR, events)
    accept(domain, 20)
    refusal = domain.refusal(hello({10: 0, 40: 3}, 3), 40, 0.0)
    assert refusal.status is LLMStatusCode.LLM_PARAM_INVALID
    assert domain.status(0.0) is OK


@pytest.mark.expects_log("domain 'x' .* failed: cluster 20 has left")
def test_a_member_that_calls_again_after_ok_waits_for_this_end(events):
    domain = make_domain(10, PAIR, events)
    accept(domain, 20)
    refusal = domain.refusal(hello(PAIR, 1, token=8), 20, 0.0)
    assert refusal.status is LLMStatusCode.LLM_NOT_YET_LINK
    assert domain.status(0.0) is FAILED


def test_a_lower_rank_that_dials_is_refused(events):
    domain = make_domain(20, PAIR, events)
    own = domain.pairs[10].hello
    refusal = domain.refusal(hello(PAIR, 0, acceptor=20), 10, 0.0)
    assert refusal.status is LLMStatusCode.LLM_LINK_FAILED
    assert domain.pairs[10].hello is own


def test_a_dialer_with_this_members_own_id_is_refused_and_changes_nothing(events):
    domain = make_domain(10, PAIR, events)
    refusal = domain.refusal(hello(PAIR, 0), 10, 0.0)
    assert refusal.status is LLMStatusCode.LLM_LINK_FAILED
    assert "both cluster 10" in refusal.reason
    assert domain.status(0.0) is PREPARING


def test_a_dial_that_was_meant_for_another_instance_is_refused_and_changes_nothing(events):
    domain = make_domain(10, TRIO, events)
    refusal = domain.refusal(hello(TRIO, 1, acceptor=30), 20, 0.0)
    assert "10" in refusal.reason
    assert "30" in refusal.reason
    assert domain.pairs[20].hello is None
    assert domain.status(0.0) is PREPARING
