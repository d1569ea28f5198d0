"""Which domains an instance has, and whose a name is."""

import pytest

from llm_datadist._domains.book import DomainBook
from llm_datadist._errors import LLMException, LLMStatusCode

from .conftest import LIMIT, make_domain

PAIR = {10: 0, 20: 1}


@pytest.fixture
def book():
    return DomainBook()


def test_a_domain_that_prepares_has_its_name(book, events):
    book.add(make_domain(10, PAIR, events))
    with pytest.raises(LLMException, match="domain 1") as raised:
        book.check_admission("x", 0.0)
    assert raised.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


@pytest.mark.expects_log("domain 'x' .* failed: time limit")
def test_a_failed_domain_frees_its_name_before_it_is_unlinked(book, events):
    first, second = (make_domain(10, PAIR, events, comm_id=number) for number in (1, 2))
    book.add(first)
    book.check_admission("x", LIMIT)
    book.add(second)
    assert book.named("x") is second
    assert book.find("unlink", 1) is first
    book.remove(first)
    assert book.named("x") is second
    book.remove(second)
    assert book.named("x") is None


def test_a_dialer_hears_in_which_domains_it_is_expected(book, events):
    """Not those in which another peer is, and not those that this end dials itself."""
    book.add(make_domain(10, PAIR, events))
    book.add(make_domain(10, {10: 0, 30: 1}, events, name="of-30", comm_id=2))
    book.add(make_domain(10, {20: 0, 10: 1}, events, name="dialed", comm_id=3))
    assert book.instead_of("y", 20) == (
        "has not called link for domain 'y'; "
        f"it expects the peer in 'x' with cluster_rank_info {PAIR}"
    )
    assert book.instead_of("y", 40) == "has not called link for domain 'y'"
