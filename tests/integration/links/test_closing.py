"""Starting, moving and closing a table."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._links import LinkTable
from llm_datadist._options.settings import Config

FINALIZED = LLMStatusCode.LLM_ENGINE_FINALIZED


def in_thread(call):
    """Run a call that is to raise; return a function that waits for its exception."""
    raised = []

    def run():
        try:
            call()
        except LLMException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def outcome():
        thread.join(5)
        return raised[0]

    return outcome


def test_peers_notice_at_once_and_everything_is_gone(end):
    a, b, c = end(1), end(2), end(3)
    a.link(b)
    c.link(a)
    links = [b.table.get(1), c.table.get(1)]
    a.table.close()
    assert not a.plane.links
    assert a.linked() == []
    assert a.address is None
    for link in links:
        assert link.lost.wait(1)
        assert "finalized" in link.reason
    b.plane.wait(0)


def test_closing_twice_and_calls_afterwards(end):
    a, b = end(1), end(2)
    link = a.link(b)[0].link
    a.table.close()
    a.table.close()
    calls = [
        lambda: a.link(b),
        lambda: a.unlink(b),
        lambda: a.table.get(2),
        lambda: a.table.check(2, 1000),
        lambda: a.table.request(link, b"", 1000),
        lambda: a.table.notify(link, b""),
        lambda: a.table.drop(link, "x"),
        lambda: a.table.release(link, "clusters"),
        lambda: a.table.relisten(("127.0.0.1", 0)),
        lambda: a.table.open_listener("127.0.0.1", 0),
        lambda: a.table.dial_peer([b.address], 1000),
    ]
    for call in calls:
        with pytest.raises(LLMException) as raised:
            call()
        assert raised.value.status_code is FINALIZED


def test_closing_a_table_that_never_started():
    LinkTable(1, Config(), 1, None).close()


def test_a_link_under_way_ends_within_a_second(end, black_hole):
    a = end(1)
    outcome = in_thread(lambda: a.link(black_hole, timeout_ms=20_000))
    with socket.socket() as probe:  # the dial is in the backlog
        probe.connect(black_hole)
    began = time.monotonic()
    a.table.close()
    assert outcome().status_code is FINALIZED
    assert time.monotonic() - began < 1


@pytest.mark.expects_log("lost: the peer")
def test_a_set_up_in_the_data_plane_is_undone(end):
    a, b = end(1), end(2)
    a.plane.gate.clear()
    outcome = in_thread(lambda: a.link(b))
    assert a.plane.entered.wait(5)
    closing = threading.Thread(target=a.table.close, daemon=True)
    closing.start()
    assert outcome().status_code is FINALIZED
    a.plane.gate.set()
    closing.join(5)
    assert not closing.is_alive()
    assert not a.plane.links
    b.plane.wait(0)


def test_a_request_under_way_ends(end, child):
    a, b = end(1), child(2, mode="mute")
    link = a.link(b)[0].link
    outcome = in_thread(lambda: a.table.request(link, b"x", 20_000))
    a.table.check(2, 2000)
    a.table.close()
    assert outcome().status_code in (FINALIZED, LLMStatusCode.LLM_LINK_FAILED)


def test_closing_does_not_wait_for_frozen_peers(end, child):
    a, b = end(1), child(2)
    a.link(b)
    b.freeze()
    began = time.monotonic()
    a.table.close()
    assert time.monotonic() - began < 1


def test_a_port_in_use_and_a_foreign_address_are_os_errors(end):
    a = end(1)
    for address in (a.address, ("203.0.113.9", 0), ("no-such-host.invalid", 0)):
        table = LinkTable(2, Config(), 2, None)
        with pytest.raises(OSError, match=r"cannot listen|not known"):
            table.start(address)
        table.close()


def test_the_port_is_free_again_at_once(end):
    a, b = end(1), end(2)
    b.link(a)
    address = a.address
    a.table.close()
    assert end(3, listen=address).address == address


def test_moving_to_another_port(end):
    a, b, c = end(1), end(2), end(3)
    b.link(a)
    old = a.address
    a.table.relisten(("127.0.0.1", 0))
    assert a.address != old
    assert a.linked() == [2]
    assert c.link(a)[0].is_ok
    assert c.link(old)[0].status is LLMStatusCode.LLM_LINK_FAILED
    a.table.relisten(None)
    assert a.address is None
    assert a.linked() == [2, 3]
    a.table.relisten(old)
    assert a.address == old
    a.table.relisten(old)
    assert c.link(a)[0].is_ok


def test_a_move_that_fails_changes_nothing(end):
    a, b = end(1), end(2)
    old = a.address
    for wrong in (b.address, ("203.0.113.9", old[1])):
        with pytest.raises(OSError, match="cannot listen"):
            a.table.relisten(wrong)
        assert a.address == old
        assert b.link(a)[0].is_ok
        b.unlink(1)


@pytest.mark.expects_log("without a secret")
def test_the_same_port_on_more_addresses(end, caplog):
    a, b = end(1), end(2)
    port = a.address[1]
    a.table.relisten(("0.0.0.0", port))
    assert a.address == ("0.0.0.0", port)
    assert b.link(("127.0.0.2", port))[0].is_ok
    a.table.relisten(("127.0.0.1", port))
    assert a.address == ("127.0.0.1", port)
    a.table.relisten(("0.0.0.0", port))
    warnings = [r for r in caplog.records if "without a secret" in r.getMessage()]
    assert len(warnings) == 1
    assert "link_secret" in warnings[0].getMessage()


def test_no_warning_with_a_secret(end):
    end(1, listen=("0.0.0.0", 0), secret=b"x")


def test_further_listeners(end):
    a, b = end(1, listen=None), end(2)
    address = a.table.open_listener("127.0.0.1", 0)
    assert a.address is None
    assert b.link(address)[0].is_ok
    a.table.close_listener(address)
    a.table.close_listener(address)
    b.unlink(1)
    assert b.link(address)[0].status is LLMStatusCode.LLM_LINK_FAILED
    with pytest.raises(OSError, match="cannot listen"):
        a.table.open_listener(*b.address)
