"""Links for domains: who may have them, and how long they live."""

from __future__ import annotations

import threading

import pytest

from llm_datadist._errors import LLMStatusCode
from llm_datadist._links import DomainHello, Refusal

OK = LLMStatusCode.LLM_SUCCESS


def hello(name="d", token=7):
    return DomainHello(name=name, ranks={1: 0, 2: 1}, rank=0, token=token)


@pytest.fixture
def pair(end):
    a, b = end(1), end(2)
    b.told = []
    b.table.hooks.on_domain_hello = lambda said, cluster_id: None
    b.table.hooks.on_domain_join = lambda said, link: b.told.append((said.name, link))
    return a, b


def dial(a, b, said=None, **named):
    return a.table.dial_peer([b.address], 5000, domain=said or hello(), **named)


def test_both_ends_hold_the_link_for_the_domain(pair):
    a, b = pair
    result = dial(a, b, expected_cluster_id=2)
    assert result.is_ok
    assert result.link.holders == {hello().holder}
    assert b.table.get(1).holders == {hello().holder}
    assert b.told == []
    assert a.table.join(result.link, hello(), 5000).is_ok
    assert b.told == [("d", b.table.get(1))]


def test_the_other_end_may_refuse(pair):
    a, b = pair
    asked = []

    def refuse(said, cluster_id):
        asked.append((said, cluster_id))
        return Refusal(LLMStatusCode.LLM_NOT_YET_LINK, "ranks differ: 3 here")

    b.table.hooks.on_domain_hello = refuse
    result = dial(a, b)
    assert result.status is LLMStatusCode.LLM_NOT_YET_LINK
    assert "ranks differ: 3 here" in result.reason
    assert asked == [(hello(), 1)]
    assert a.linked() == b.linked() == []


def test_the_link_goes_with_its_last_domain(pair):
    a, b = pair
    first, second = hello("one"), hello("two")
    link = dial(a, b, first).link
    assert dial(a, b, second).link is link
    assert len(a.plane.links) == 1
    a.table.release(link, first.holder)
    assert a.linked() == [2]
    a.table.release(link, first.holder)
    assert a.linked() == [2]
    a.table.release(link, second.holder)
    assert a.linked() == []
    assert not a.plane.links
    b.plane.wait(0)
    assert b.linked() == []


def test_link_clusters_holds_it_as_well_at_both_ends(pair):
    a, b = pair
    link = dial(a, b).link
    assert a.link(b)[0].link is link
    a.table.release(link, hello().holder)
    b.table.release(b.table.get(1), hello().holder)
    assert a.linked() == [2]
    assert a.table.get(2).holders == b.table.get(1).holders == {"clusters"}


def test_unlink_clusters_ends_it_whoever_holds_it(pair):
    a, b = pair
    dial(a, b)
    a.unlink(2)
    assert a.linked() == b.linked() == []


def test_domains_of_one_pair_at_the_same_time_share_the_link(pair, eventually):
    a, b = pair
    results = []
    names = [f"domain {number}" for number in range(8)]
    threads = [
        threading.Thread(target=lambda n=n: results.append(dial(a, b, hello(n))), daemon=True)
        for n in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert [result.status for result in results] == [OK] * 8
    assert len({id(result.link) for result in results}) == 1
    assert a.table.get(2).holders == {hello(name).holder for name in names}
    eventually(lambda: b.table.get(1).holders == a.table.get(2).holders)


def test_a_call_and_a_domain_at_the_same_time_both_hold_the_link(pair, eventually):
    """At both ends: neither shares the other's set-up without telling the peer."""
    a, b = pair
    a.plane.gate.clear()
    results = []
    calls = (lambda: dial(a, b), lambda: a.link(b)[0])
    threads = [
        threading.Thread(target=lambda call=call: results.append(call()), daemon=True)
        for call in calls
    ]
    threads[0].start()
    assert a.plane.entered.wait(5)
    threads[1].start()
    threads[1].join(0.1)
    a.plane.gate.set()
    for thread in threads:
        thread.join(5)
    assert [result.status for result in results] == [OK, OK]
    holders = {hello().holder, "clusters"}
    assert a.table.get(2).holders == holders
    eventually(lambda: b.table.get(1).holders == holders)


def test_a_link_that_is_just_going_is_waited_for(pair):
    a, b = pair
    link = dial(a, b).link
    holding, let_go = threading.Event(), threading.Event()
    disconnect = a.plane.disconnect

    def slow_disconnect(data):
        holding.set()
        assert let_go.wait(10)
        disconnect(data)

    a.plane.disconnect = slow_disconnect
    releasing = threading.Thread(target=a.table.release, args=(link, hello().holder), daemon=True)
    releasing.start()
    assert holding.wait(5)
    results = []
    dialing = threading.Thread(
        target=lambda: results.append(dial(a, b, hello("next"))), daemon=True
    )
    dialing.start()
    let_go.set()
    releasing.join(5)
    dialing.join(5)
    assert results[0].is_ok, results
    assert results[0].link is not link


def test_candidates_are_tried_in_order(pair, refusing, black_hole):
    a, b = pair
    result = a.table.dial_peer([refusing, black_hole, b.address], 600, domain=hello())
    assert result.is_ok, result


def test_what_a_peer_says_comes_before_silence(pair, refusing):
    a, b = pair
    b.table.hooks.on_domain_hello = lambda said, cluster_id: Refusal(
        LLMStatusCode.LLM_NOT_YET_LINK, "not yet"
    )
    result = a.table.dial_peer([refusing, b.address], 5000, domain=hello())
    assert result.status is LLMStatusCode.LLM_NOT_YET_LINK
    assert "refused" in result.reason


def test_no_candidates(pair):
    assert pair[0].table.dial_peer([], 100).status is LLMStatusCode.LLM_PARAM_INVALID
