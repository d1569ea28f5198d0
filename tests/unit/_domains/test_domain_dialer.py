"""Linking the pairs that a member dials: what is asked of the link table, and what follows."""

import time

import pytest

from llm_datadist._domains import domain_dialer
from llm_datadist._domains.book import DomainBook
from llm_datadist._domains.dial_rounds import NextRound
from llm_datadist._domains.domain_dialer import DomainDialer
from llm_datadist._domains.rendezvous import Rendezvous
from llm_datadist._errors import LLMStatusCode
from llm_datadist._links import Leave, LinkResult
from llm_datadist._types import RegisterMemStatus

from .conftest import FakeLink, make_domain

OK, PREPARING, FAILED = RegisterMemStatus
S = LLMStatusCode
PAIR = {10: 0, 20: 1}
PEER = 10


class FakeTable:
    """A link table whose peer answers as `answers` says, one answer for each join."""

    def __init__(self):
        self.up, self.dials, self.answers = [], [], []
        self.left, self.released = [], []
        self.on_join = lambda link, hello: None

    def links(self):
        return [link for link in self.up if link.alive]

    def dial_peer(self, addresses, timeout_ms, **named):
        self.dials.append((addresses, timeout_ms, named))
        if not self.links():
            self.up.append(FakeLink(PEER))
        return LinkResult(S.LLM_SUCCESS, link=self.links()[0])

    def join(self, link, hello, timeout_ms):
        self.on_join(link, hello)
        status = self.answers.pop(0) if self.answers else S.LLM_SUCCESS
        return LinkResult(status, f"{status.name}")

    def leave(self, link, message):
        self.left.append(message)

    def release(self, link, holder):
        self.released.append(holder)


class Dialing:
    """A dialer over that table; its rounds are run by the test."""

    def __init__(self):
        self.book, self.table = DomainBook(), FakeTable()
        rendezvous = Rendezvous(self.table, 120.0)
        self.dialer = DomainDialer(20, self.book, self.table, rendezvous, None)

    def add(self, name="x", comm_id=1):
        domain = make_domain(20, PAIR, self.dialer, name, comm_id)
        domain.deadline = float("inf")
        self.book.add(domain)
        return domain

    def round(self):
        return self.dialer._run_round(PEER)


@pytest.fixture
def dialing():
    made = Dialing()
    yield made
    made.dialer.close()


def test_the_first_domain_dials_and_further_ones_join_over_its_link(dialing):
    domains = [dialing.add(f"{number}", number) for number in range(40)]
    assert dialing.round() is NextRound.NONE
    assert len(dialing.table.dials) == 1
    assert {domain.status(0.0) for domain in domains} == {OK}


def test_a_peer_that_has_not_called_is_asked_again_and_nothing_is_held(dialing):
    domain = dialing.add()
    dialing.table.answers = [S.LLM_NOT_YET_LINK]
    assert dialing.round() is NextRound.LATER
    assert domain.pairs[PEER].attempts == 1
    assert dialing.table.released == [domain.pairs[PEER].hello.holder]
    assert dialing.round() is NextRound.NONE
    assert domain.status(0.0) is OK


def test_an_answer_that_does_not_come_leaves_the_link_held_and_is_asked_for_again(dialing):
    """The peer may have entered the link: it must hear of no end, and the same link counts."""
    domain = dialing.add()
    link = FakeLink(PEER)
    dialing.table.up.append(link)
    dialing.table.answers = [S.LLM_TIMEOUT, S.LLM_TIMEOUT]
    assert dialing.round() is NextRound.LATER
    assert domain.pairs[PEER].trial is link
    assert (dialing.table.left, dialing.table.released) == ([], [])
    assert dialing.round() is NextRound.NONE
    assert domain.pairs[PEER].link is link


def test_a_domain_that_is_unlinked_during_its_join_is_left(dialing):
    domain = dialing.add()
    dialing.table.on_join = lambda link, hello: dialing.book.remove(domain)
    dialing.round()
    [message] = dialing.table.left
    assert (message.token, message.complete) == (domain.pairs[PEER].hello.token, False)
    assert dialing.table.released == [domain.pairs[PEER].hello.holder]


def test_a_peer_that_leaves_before_its_answer_is_recorded_is_asked_again(dialing):
    domain = dialing.add()

    def leave(link, hello):
        message = Leave(name="x", token=hello.token, complete=False, reason="time limit")
        dialing.book.named("x").on_leave(message, PEER, link)
        dialing.table.on_join = lambda link, hello: None

    dialing.table.on_join = leave
    assert dialing.round() is NextRound.LATER
    assert domain.status(0.0) is PREPARING
    assert dialing.round() is NextRound.NONE
    assert domain.status(0.0) is OK


def test_an_attempt_right_before_the_time_limit_hides_no_earlier_reason(dialing, monkeypatch):
    """Its own answer may be cut off; the earlier one says what to mend."""
    domain = dialing.add()
    pair = domain.pairs[PEER]
    reasons = ["the peer has another secret", "no answer within 7 ms"]
    dialing.table.dial_peer = lambda *_, **__: LinkResult(S.LLM_LINK_FAILED, reasons.pop(0))
    dialing.round()
    assert "secret" in pair.note
    monkeypatch.setattr(domain_dialer, "_LEAST_SECONDS", 1000.0)
    domain.deadline = time.monotonic() + 500.0
    dialing.round()
    assert "secret" in pair.note
    assert (pair.attempts, reasons) == (2, [])


@pytest.mark.expects_log("domain 'x' .* failed: LLM_PARAM_INVALID")
def test_a_refusal_fails_the_domain(dialing):
    domain = dialing.add()
    dialing.table.answers = [S.LLM_PARAM_INVALID]
    assert dialing.round() is NextRound.NONE
    assert domain.status(0.0) is FAILED


@pytest.mark.parametrize("several", [False, True])
def test_only_the_first_answer_of_several_addresses_has_a_short_limit(dialing, several):
    domain = dialing.add()
    if several:
        domain.pairs[PEER].addresses = (("127.0.0.1", 5), ("127.0.0.2", 5))
    dialing.round()
    [(_, timeout_ms, named)] = dialing.table.dials
    assert timeout_ms == 30_000
    assert named["answer_timeout_ms"] == (1000 if several else 10_000)
