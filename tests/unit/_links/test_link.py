"""States of a link, and addresses that are the same."""

import pytest

from llm_datadist._links.link import TRANSITIONS, LinkState, same_address


def test_a_lost_link_says_why_and_that_it_died(make_link):
    link = make_link()
    assert link.alive
    link.enter(LinkState.LOST, "cut off")
    assert (link.alive, link.reason, link.died, link.lost.is_set()) == (
        False,
        "cut off",
        True,
        True,
    )


def test_no_transition_but_those_of_the_table(make_link):
    link = make_link()
    for state in set(LinkState) - TRANSITIONS[link.state]:
        with pytest.raises(AssertionError, match=f"link 2: LINKED to {state.name}"):
            link.enter(state)


def test_a_peer_holds_a_link_once_for_each_domain(make_link):
    link = make_link()
    for holder in ("clusters", "domain:a/b/1", "domain:a/1", "domain:a/2", "domain:a/3"):
        link.hold_for_peer(holder)
    assert link.holders == {"clusters", "domain:a/b/1", "domain:a/3"}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("127.0.0.1", 5), ("127.0.0.1", 5), True),
        (("127.0.0.1", 5), ("127.0.0.1", 6), False),
        (("::ffff:10.0.0.1", 5), ("10.0.0.1", 5), True),
        (("FE80::1", 5), ("fe80:0::1", 5), True),
        (("Host", 5), ("host", 5), True),
        (("host", 5), ("127.0.0.1", 5), False),
    ],
)
def test_addresses_are_the_same_however_they_are_written(one, other, same):
    assert same_address(one, other) is same
