"""Lost links that link_clusters had made are made again by themselves: when, and when not."""

from __future__ import annotations

import logging
import signal
import threading
import time

import pytest

from llm_datadist._errors import LLMException, LLMStatusCode

S = LLMStatusCode
pytestmark = pytest.mark.expects_log("lost")
#: Several dials of a peer that is there: the pauses begin with 50 ms.
SOON_S = 0.6


def cut(link):
    """Break the connection of a link, at one end, as if the network had."""
    link.conversation.connection.abort()


def cut_off(one, cluster_id):
    """Cut the link of an end; wait until it has been noticed."""
    link = one.table.get(cluster_id)
    one.table._control.post(cut, link)
    assert link.lost.wait(5)
    return link


def pending(one):
    return [facts["cluster_id"] for facts in one.table.describe_relinks()]


def relinked(one, cluster_id):
    """How often a link was made again; -1 while there is none."""
    if cluster_id not in one.linked():
        return -1
    return one.table.describe(cluster_id)["relinked"]


def refused(one, cluster_id):
    """Return what a call says that needs the link."""
    with pytest.raises(LLMException) as raised:
        one.table.get(cluster_id)
    assert raised.value.status_code is S.LLM_NOT_YET_LINK
    return str(raised.value)


def test_a_peer_that_was_killed_is_linked_again_when_it_is_back(end, child, eventually):
    a, b = end(1), child(2)
    a.link(b)
    port, first = b.address[1], a.table.get(2).incarnation
    for times in (1, 2):
        b.kill()
        eventually(lambda: pending(a) == [2])
        assert "is being re-established" in refused(a, 2)
        b = child(2, listen_port=port)
        eventually(lambda times=times: relinked(a, 2) == times, 10)
        a.table.check(2, 1000)
        assert b.ask("linked") == [1]
    assert pending(a) == []
    assert a.table.get(2).incarnation != first


def test_a_cut_link_is_made_again_with_the_same_instance(end, eventually):
    a, b = end(1), end(2)
    a.link(b)
    before = a.table.describe(2)
    lost = cut_off(a, 2)
    eventually(lambda: relinked(a, 2) == 1)
    after = a.table.describe(2)
    assert after["incarnation"] == before["incarnation"]
    assert after["generation"] == before["generation"] + 1
    assert after["holders"] == before["holders"] == ["clusters"]
    assert a.table.get(2).addresses >= lost.addresses
    eventually(lambda: b.linked() == [1])
    b.table.check(1, 1000)
    assert len(a.lost) == 1
    (result,) = a.unlink(b)  # by the address that was linked at first
    assert result.is_ok
    assert a.linked() == b.linked() == []


def test_the_accepting_end_leaves_it_to_the_dialing_one(end, eventually):
    a, b = end(1), end(2)
    a.link(b)
    cut_off(b, 1)
    eventually(lambda: relinked(a, 2) == 1)
    eventually(lambda: b.linked() == [1])
    assert b.table.describe(1)["relinked"] == 0


def test_an_end_that_was_linked_already_when_it_asked_cares_for_the_link_too(
    end, child, eventually
):
    a, b = end(1), child(2)
    assert b.ask("link", *a.address) == ["LLM_SUCCESS", ""]
    assert a.link(b)[0].is_ok
    assert a.table.describe(2)["opened_by"] == "the peer"
    port = b.address[1]
    b.kill()
    child(2, listen_port=port)
    eventually(lambda: relinked(a, 2) == 1, 10)


def test_two_ends_that_both_care_make_one_link(end, eventually):
    a, b = end(1), end(2)
    for _ in range(5):
        assert a.link(b)[0].is_ok
        assert b.link(a)[0].is_ok
        cut_off(a, 2)
        eventually(lambda: a.linked() == [2] and b.linked() == [1] and not pending(a) + pending(b))
        a.table.check(2, 1000)
        b.table.check(1, 1000)
        assert a.table.get(2).generation == b.table.get(1).generation


def test_an_unlink_at_either_end_is_no_loss(end):
    pairs = []
    for number, force in enumerate((False, True, False, True)):
        a, b = end(1), end(2)
        a.link(b)
        pairs.append((a, b, a.table.get(2)))
        one, other = (a, 2) if number < 2 else (b, 1)
        assert one.unlink(other, force=force)[0].is_ok
    time.sleep(SOON_S)
    for a, b, link in pairs:
        assert link.lost.is_set()
        assert pending(a) == pending(b) == a.linked() == b.linked() == []


def test_the_finalize_of_a_peer_is_no_loss(end, child):
    a, b = end(1), child(2)
    a.link(b)
    link, port = a.table.get(2), b.address[1]
    assert b.ask("close") == "closed"
    assert link.lost.wait(2)
    again = child(2, listen_port=port)
    time.sleep(SOON_S)
    assert pending(a) == a.linked() == again.ask("linked") == []


def test_another_cluster_at_the_address_is_left_alone(end, child, eventually):
    a, b = end(1), child(2)
    a.link(b)
    port = b.address[1]
    b.kill()
    other = child(7, listen_port=port)
    eventually(lambda: "cluster 7" in refused(a, 2), 10)
    assert other.ask("linked") == a.linked() == []
    assert pending(a) == [2]
    other.kill()
    child(2, listen_port=port)
    eventually(lambda: relinked(a, 2) == 1, 20)


def test_an_unlink_that_could_not_be_told_is_told_when_the_peer_dials(end, eventually, caplog):
    """Cut off from each other, one end unlinks; it is not linked again against its will."""
    a, b = end(1), end(2)
    a.link(b)
    place = b.address
    b.table.relisten(None)
    cut_off(a, 2)
    eventually(lambda: not b.linked())
    assert b.unlink(1)[0].status is S.LLM_NOTIFY_PROMPT_UNLINK_FAILED
    assert pending(a) == [2]
    with caplog.at_level(logging.INFO, "llm_datadist"):
        b.table.relisten(place)
        eventually(lambda: pending(a) == [], 15)
    assert a.linked() == b.linked() == []
    assert sum("is not re-established" in line for line in caplog.messages) == 1
    assert a.link(b)[0].is_ok  # who asks for it gets it


def test_link_clusters_goes_before_and_there_is_one_link(end, child, eventually):
    a, b = end(1), child(2)
    a.link(b)
    port = b.address[1]
    for _ in range(3):
        b.kill()
        eventually(lambda: pending(a) == [2])
        assert a.link(b)[0].status is S.LLM_LINK_FAILED  # which ends no attempt
        assert pending(a) == [2]
        b = child(2, listen_port=port)
        assert a.link(b)[0].is_ok
        assert pending(a) == []
        assert a.linked() == [2]
        assert b.ask("linked") == [1]
        a.table.check(2, 1000)


def test_link_clusters_again_and_again_while_a_link_is_made_again(end, eventually):
    """Whatever the dial in the background is at when the call comes."""
    a, b = end(1), end(2)
    a.link(b)
    pauses = [0.0, 0.01, 0.02, 0.025, 0.03, 0.035, 0.04, 0.045, 0.05, 0.055, 0.06]
    for pause in pauses:
        cut_off(a, 2)
        time.sleep(pause)
        (result,) = a.link(b)
        assert result.is_ok, (pause, result)
        assert a.linked() == [2]
        eventually(lambda: b.linked() == [1])
        a.table.check(2, 1000)
    assert pending(a) == []


@pytest.mark.slow
def test_a_frozen_peer_is_linked_again_when_it_thaws(end, child, eventually):
    a, b = end(1, heartbeat_ms=50, peer_timeout_ms=300), child(2)
    a.link(b)
    b.freeze()
    eventually(lambda: pending(a) == [2])
    time.sleep(0.3)  # a dial waits for its greeting
    assert a.link(b, timeout_ms=200)[0].status is S.LLM_TIMEOUT
    b.signal(signal.SIGCONT)
    eventually(lambda: relinked(a, 2) == 1, 15)
    a.table.check(2, 2000)
    eventually(lambda: b.ask("linked") == [1])


@pytest.mark.slow
def test_an_unlink_ends_a_dial_that_waits_for_a_frozen_peer(end, child, eventually):
    a, b = end(1, heartbeat_ms=50, peer_timeout_ms=300), child(2)
    a.link(b)
    b.freeze()
    eventually(lambda: pending(a) == [2])
    time.sleep(0.3)
    began = time.monotonic()
    a.unlink(2)
    assert time.monotonic() - began < 1
    b.signal(signal.SIGCONT)
    time.sleep(SOON_S)
    assert a.linked() == b.ask("linked") == []


def test_a_peer_that_comes_back_elsewhere_links_by_itself(end, child, eventually):
    """The lost link is not dialed any more; the new one is cared for at the old place."""
    a, b = end(1), child(2)
    a.link(b)
    port = b.address[1]
    b.kill()
    eventually(lambda: pending(a) == [2])
    elsewhere = child(2)
    assert elsewhere.ask("link", *a.address) == ["LLM_SUCCESS", ""]
    assert pending(a) == []
    assert a.linked() == [2]
    elsewhere.kill()
    child(2, listen_port=port)
    eventually(lambda: relinked(a, 2) == 1, 10)


def test_the_end_of_an_instance_ends_its_dials(end, child, black_hole, eventually):
    """Some of them under way: the peer is frozen."""
    a, b = end(1, heartbeat_ms=50, peer_timeout_ms=300), child(2)
    a.link(b)
    b.freeze()
    eventually(lambda: pending(a) == [2])
    time.sleep(0.2)
    began = time.monotonic()
    a.table.close()
    assert time.monotonic() - began < 2


def test_it_is_logged_twice_and_no_more(end, child, eventually, caplog):
    a, b = end(1), child(2)
    a.link(b)
    port = b.address[1]
    with caplog.at_level(logging.INFO, "llm_datadist"):
        b.kill()
        eventually(lambda: pending(a) == [2])
        eventually(lambda: a.table.describe_relinks()[0]["attempts"] >= 4)
        (facts,) = a.table.describe_relinks()
        child(2, listen_port=port)
        for last in ("is re-established after", "linked to cluster 2"):  # in either order
            eventually(lambda words=last: sum(words in line for line in caplog.messages) > 0, 10)
    lines = [line for line in caplog.messages if f"cluster 2 at 127.0.0.1:{port}" in line]
    words = ["lost: ", "being re-established", "linked to", "is re-established after"]
    assert len(lines) == len(words), lines
    assert all(any(word in line for line in lines) for word in words), lines
    assert facts["peer"] == f"127.0.0.1:{port}"
    assert facts["places"] == [f"127.0.0.1:{port}"]
    assert "refused" in facts["failure"]
    assert facts["lost"]
    assert 0 < facts["seconds"] < 60


def test_calls_find_out_at_once(end, child, eventually):
    """While a link is made again nothing waits for it."""
    a, b = end(1, heartbeat_ms=50, peer_timeout_ms=300), child(2)
    a.link(b)
    b.freeze()
    eventually(lambda: pending(a) == [2])
    began = time.monotonic()
    for _ in range(100):
        assert "retry soon" in refused(a, 2)
    with pytest.raises(LLMException, match="re-established"):
        a.table.check(2, 5000)
    assert time.monotonic() - began < 1


def test_many_links_lost_at_once_come_back(end, eventually):
    hub = end(1)
    others = [end(10 + number) for number in range(12)]
    hub.link(*others)
    cutting = threading.Barrier(len(others))

    def lose(one):
        cutting.wait(5)
        cut_off(one, 1)

    threads = [threading.Thread(target=lose, args=(one,)) for one in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: all(relinked(hub, 10 + n) == 1 for n in range(12)), 20)
    assert pending(hub) == []
