"""Dialing the addresses of one peer for a domain: in which order, and how long each may take."""

import time

import pytest

from llm_datadist._domains.rendezvous import Meeting, Outcome, Rendezvous
from llm_datadist._errors import LLMStatusCode
from llm_datadist._links import LinkResult

from .conftest import FakeLink, hello

S = LLMStatusCode
PEER = 10
HELLO = hello({10: 0, 20: 1}, 1)
ONE, TWO = ("10.0.0.1", 1), ("10.0.0.2", 2)


class Table:
    """A link table that answers at the addresses of `answers`, and nowhere else."""

    def __init__(self):
        self.answers, self.dials, self.times, self.joined = {}, [], [], []

    def links(self):
        return []

    def dial_peer(self, addresses, timeout_ms, *, domain, answer_timeout_ms):
        self.dials += addresses
        self.times.append((timeout_ms, answer_timeout_ms))
        return self.answers.get(
            addresses[0], LinkResult(S.LLM_LINK_FAILED, f"no {addresses[0][0]}")
        )

    def join(self, link, hello, timeout_ms):
        self.joined.append(timeout_ms)
        return LinkResult(S.LLM_SUCCESS, link=link)


@pytest.fixture
def table():
    return Table()


def dial(rendezvous, *addresses, seconds=5.0):
    return rendezvous.dial(PEER, addresses, HELLO, time.monotonic() + seconds)


def test_the_only_address_has_the_full_time_to_answer(table):
    dial(Rendezvous(table, 4.0), ONE)
    [(setup, answer)] = table.times
    assert (setup, answer) == (pytest.approx(5000, rel=0.1), 4000)


def test_one_of_several_has_a_short_time_that_grows_in_each_round(table):
    rendezvous = Rendezvous(table, 4.0)
    for _ in range(4):
        dial(rendezvous, ONE, TWO)
    assert [answer for _, answer in table.times] == [1000, 1000, 2000, 2000, *4 * [4000]]
    table.answers[TWO] = LinkResult(S.LLM_SUCCESS, link=FakeLink(PEER))
    assert dial(rendezvous, ONE, TWO).outcome is Outcome.LINKED
    dial(rendezvous, ONE, TWO)
    assert table.times[-1][1] == 1000


def test_an_address_that_answered_is_the_first_of_later_rounds(table):
    table.answers[TWO] = LinkResult(S.LLM_NOT_YET_LINK, "later")
    rendezvous = Rendezvous(table, 4.0)
    assert (
        dial(rendezvous, ONE, TWO)
        == dial(rendezvous, ONE, TWO)
        == Meeting(Outcome.NOT_YET, "later")
    )
    assert table.dials == [ONE, TWO, TWO]


def test_what_the_peer_answers_is_told_apart(table):
    outcomes = {
        S.LLM_SUCCESS: Outcome.LINKED,
        S.LLM_NOT_YET_LINK: Outcome.NOT_YET,
        S.LLM_PROCESSING_LINK: Outcome.NOT_YET,
        S.LLM_PARAM_INVALID: Outcome.REFUSED,
        S.LLM_TIMEOUT: Outcome.UNREACHED,
    }
    for status, outcome in outcomes.items():
        table.answers[ONE] = LinkResult(status, "said")
        assert dial(Rendezvous(table, 4.0), ONE).outcome is outcome


def test_all_that_failed_is_said(table):
    meeting = dial(Rendezvous(table, 4.0), ONE, TWO)
    assert meeting == Meeting(Outcome.UNREACHED, f"no {ONE[0]}; no {TWO[0]}")


def test_nothing_is_asked_after_the_deadline(table):
    rendezvous = Rendezvous(table, 4.0)
    assert dial(rendezvous, ONE, seconds=-1).outcome is Outcome.UNREACHED
    assert rendezvous.join(FakeLink(PEER), HELLO, time.monotonic() - 1).outcome is Outcome.UNREACHED
    assert (table.dials, table.joined) == ([], [])


def test_neither_a_setup_nor_a_join_takes_all_of_a_long_time(table):
    dial(Rendezvous(table, 100.0), ONE, seconds=1000)
    Rendezvous(table, 100.0).join(FakeLink(PEER), HELLO, time.monotonic() + 1000)
    assert (table.times, table.joined) == ([(30_000, 10_000)], [10_000])
