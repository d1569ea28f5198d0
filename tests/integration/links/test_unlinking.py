"""unlink_clusters, from either end, with the peer in any state."""

from __future__ import annotations

import threading
import time

import pytest

from llm_datadist._errors import LLMException, LLMStatusCode

OK = LLMStatusCode.LLM_SUCCESS
NOT_TOLD = LLMStatusCode.LLM_NOTIFY_PROMPT_UNLINK_FAILED
LOST = pytest.mark.expects_log("lost")


def statuses(results):
    return [result.status for result in results]


@pytest.mark.parametrize("by", ["dialer", "acceptor"])
@pytest.mark.parametrize("named", ["id", "address"])
def test_both_ends_go(end, by, named):
    a, b = end(1), end(2)
    a.link(b)
    link = a.table.get(2)
    one, other, other_id = (a, b, 2) if by == "dialer" else (b, a, 1)
    assert statuses(one.unlink(other if named == "address" else other_id)) == [OK]
    assert a.linked() == b.linked() == []
    assert not a.plane.links
    assert not b.plane.links
    assert link.lost.is_set()
    assert not link.alive
    assert one.lost == []
    with pytest.raises(LLMException, match="LLM_NOT_YET_LINK"):
        one.table.get(other_id)


def test_forced_does_not_wait_for_the_peer(end, child):
    a, b = end(1), child(2)
    a.link(b)
    b.freeze()
    began = time.monotonic()
    assert statuses(a.unlink(2, timeout_ms=5000, force=True)) == [OK]
    assert time.monotonic() - began < 1
    assert not a.plane.links


def test_forced_ends_the_other_end_soon(end):
    a, b = end(1), end(2)
    a.link(b)
    assert statuses(a.unlink(2, force=True)) == [OK]
    b.plane.wait(0)
    assert b.linked() == []
    assert a.link(b)[0].is_ok


def test_a_frozen_peer_cannot_be_told_and_this_end_is_gone(end, child):
    a, b = end(1), child(2)
    a.link(b)
    b.freeze()
    began = time.monotonic()
    (result,) = a.unlink(2, timeout_ms=200)
    assert result.status is NOT_TOLD
    assert 0.2 <= time.monotonic() - began < 1
    assert "200 ms" in result.reason
    assert a.linked() == []
    assert not a.plane.links


@LOST
@pytest.mark.parametrize("named", ["id", "address"])
@pytest.mark.parametrize("noticed", [False, True])
def test_a_dead_peer_cannot_be_told_whether_its_death_was_noticed_or_not(
    end, child, named, noticed
):
    a, b = end(1), child(2)
    link = a.link(b)[0].link
    b.kill()
    if noticed:
        assert link.lost.wait(5)
        a.plane.wait(0)
    target = b if named == "address" else 2
    (result,) = a.unlink(target)
    assert result.status is NOT_TOLD
    assert a.linked() == []
    assert statuses(a.unlink(target)) == [OK]


def test_a_peer_that_closed_is_simply_not_linked(end, eventually):
    a, b = end(1), end(2)
    link = a.link(b)[0].link
    address = b.address
    b.table.close()
    assert link.lost.wait(5)
    a.plane.wait(0)
    assert statuses(a.unlink(2, address)) == [OK, OK]
    eventually(lambda: a.lost == [link])


@pytest.mark.slow
def test_unlinks_that_cross_both_succeed(end):
    a, b = end(1), end(2)
    for _ in range(20):
        a.link(b)
        barrier = threading.Barrier(2)
        results = []

        def unlink(one, other, barrier=barrier, results=results):
            barrier.wait()
            results.extend(one.unlink(other))

        threads = [
            threading.Thread(target=unlink, args=pair, daemon=True) for pair in ((a, 2), (b, 1))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert statuses(results) == [OK, OK]
        assert not a.plane.links
        assert not b.plane.links


@pytest.mark.parametrize("side", ["same", "peer"])
def test_a_teardown_under_way_is_waited_for(end, too_late, side):
    """By calls of either end, if their timeouts allow; the peer asks again and again."""
    a, b = end(1), end(2)
    one, other = (a, b) if side == "same" else (b, a)
    a.link(b)
    holding, let_go = threading.Event(), threading.Event()
    disconnect = a.plane.disconnect

    def slow_disconnect(data):
        holding.set()
        assert let_go.wait(10)
        disconnect(data)

    a.plane.disconnect = slow_disconnect
    results = {}

    def run(name, call, *arguments):
        results[name] = call(*arguments)

    first = threading.Thread(target=run, args=("first", a.unlink, 2), daemon=True)
    first.start()
    assert holding.wait(5)
    too_late(one, other)
    second = threading.Thread(target=run, args=("second", a.unlink, 2), daemon=True)
    second.start()
    link = threading.Thread(target=run, args=("link", one.link, other), daemon=True)
    link.start()
    link.join(0.1)
    let_go.set()
    for thread in (first, second, link):
        thread.join(5)
    assert statuses(results["first"]) == statuses(results["second"]) == [OK]
    assert statuses(results["link"]) == [OK]
    assert one.table.get(other.table._context.cluster_id).alive


def test_a_teardown_that_the_peer_has_asked_for_is_waited_for_by_link(end):
    """Whoever links here cannot know of it: it is no reason to refuse."""
    a, b = end(1), end(2)
    a.link(b)
    holding, let_go = threading.Event(), threading.Event()
    disconnect = b.plane.disconnect

    def slow_disconnect(data):
        holding.set()
        assert let_go.wait(10)
        disconnect(data)

    b.plane.disconnect = slow_disconnect
    assert statuses(a.unlink(b, force=True)) == [OK]
    assert holding.wait(5)
    threading.Timer(0.1, let_go.set).start()
    assert b.link(a)[0].is_ok


def test_linking_right_after_unlinking_works_from_either_end(end):
    a, b = end(1), end(2)
    for one, other in ((a, b), (b, a)) * 5:
        assert one.link(other)[0].is_ok
        assert statuses(one.unlink(other)) == [OK]
        assert other.link(one)[0].is_ok
        assert statuses(one.unlink(other, force=True)) == [OK]
