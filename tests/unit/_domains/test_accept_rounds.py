"""An end that waits to be dialed: it binds its port again, and looks why nothing comes."""

import pytest

from llm_datadist._domains.accept_rounds import AcceptRounds
from llm_datadist._domains.book import DomainBook
from llm_datadist._domains.rendezvous import Meeting, Outcome
from llm_datadist._types import RegisterMemStatus

from .conftest import FakeLink, hello, make_domain

OK, PREPARING, FAILED = RegisterMemStatus
PAIR = {10: 0, 20: 1}
OWN = (("127.0.0.1", 60000),)


class Listener:
    """Cannot listen as long as there are problems."""

    def __init__(self, *problems):
        self.problems = list(problems)

    def open(self, candidates):
        assert candidates == OWN
        return self.problems.pop(0) if self.problems else ""


class Opinions:
    """What peers say of a domain."""

    def __init__(self, outcome):
        self.outcome, self.asked = outcome, []

    def compare(self, peer_id, addresses, said, deadline):
        self.asked.append((peer_id, addresses, said.acceptor))
        return Meeting(self.outcome, f"opinion of {peer_id}")


def waiting(events, listener, opinions):
    """Return a domain that waits for its dialer, and its rounds."""
    book = DomainBook()
    domain = make_domain(10, PAIR, events)
    domain.own_addresses, domain.deadline = OWN, float("inf")
    book.add(domain)
    return domain, AcceptRounds(10, book, opinions, listener)


def test_a_port_is_bound_as_soon_as_it_is_free(events):
    domain, rounds = waiting(events, Listener("in use"), Opinions(Outcome.UNREACHED))
    domain.listen_problem, domain.probe_times = "in use", []
    assert rounds.run_round()
    assert domain.listen_problem == "in use"
    assert rounds.run_round()
    assert domain.listen_problem == ""


def test_rounds_end_with_the_set_up(events):
    domain, rounds = waiting(events, Listener(), Opinions(Outcome.UNREACHED))
    assert domain.refusal(hello(PAIR, 1), 20, 0.0) is None
    domain.enter(domain.pairs[20], FakeLink(20))
    assert not rounds.run_round()


def test_an_end_that_is_not_dialed_looks_twice(events):
    opinions = Opinions(Outcome.NOT_YET)
    domain, rounds = waiting(events, Listener(), opinions)
    assert len(domain.probe_times) == 2
    for _ in range(4):
        assert rounds.run_round()
    assert opinions.asked == [(20, (("127.0.0.1", 5),), 20)] * 2
    assert "opinion of 20" in domain.pairs[20].note
    assert domain.status(0.0) is PREPARING


@pytest.mark.expects_log("domain 'x' .* failed: opinion of 20")
def test_a_peer_that_disagrees_fails_the_domain(events):
    domain, rounds = waiting(events, Listener(), Opinions(Outcome.REFUSED))
    assert not rounds.run_round()
    assert domain.status(0.0) is FAILED


def test_what_listens_in_its_place_is_asked_too(events):
    opinions = Opinions(Outcome.UNREACHED)
    domain, rounds = waiting(events, Listener("in use"), opinions)
    domain.listen_problem = "in use"
    domain.probe_times = [0.0]
    assert rounds.run_round()
    assert opinions.asked[0] == (10, OWN, None)
    assert domain.listen_problem == "in use; what listens there: opinion of 10"


def test_an_end_that_was_dialed_meanwhile_is_not_failed_by_what_it_finds(events):
    domain, rounds = waiting(events, Listener(), Opinions(Outcome.REFUSED))

    def dialed(peer_id, addresses, said, deadline):
        domain.refusal(hello(PAIR, 1), 20, 0.0)
        domain.enter(domain.pairs[20], FakeLink(20))
        return Meeting(Outcome.REFUSED, "too late")

    rounds._rendezvous.compare = dialed
    assert not rounds.run_round()
    assert domain.status(0.0) is OK
