"""An orderly end of a peer is never taken for its death: any warning in the log fails the test."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time

import pytest

from llm_datadist._errors import LLMException
from llm_datadist._links.link import Link
from llm_datadist._links.state import Setup


class Talk:
    """A thread that sends to every linked peer without a pause, so that much lies unread."""

    def __init__(self, one):
        self._table = one.table
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while not self._over.is_set():
            for link in self._table.links():
                with contextlib.suppress(LLMException):  # it has just ended
                    self._table.notify(link, bytes(2000))
            time.sleep(0)

    def __enter__(self):
        self._thread.start()

    def __exit__(self, *_):
        self._over.set()
        self._thread.join(10)


@pytest.mark.slow
@pytest.mark.parametrize("dials", ["the one that stays", "the one that ends"])
def test_the_peers_of_a_finalized_instance_see_no_death(end, dials, caplog):
    caplog.set_level(logging.INFO, logger="llm_datadist")
    stays = end(1, lanes_per_link=1)
    with Talk(stays):
        for _ in range(200):
            ends = end(2, lanes_per_link=1)
            one, other = (stays, ends) if dials.endswith("stays") else (ends, stays)
            assert one.link(other)[0].is_ok
            link = stays.table.get(2)
            ends.table.close()
            assert link.lost.wait(5)
            assert not link.died
            assert "finalized" in link.reason
    assert stays.table.describe_relinks() == []
    lines = [record for record in caplog.records if "unlinked" in record.getMessage()]
    assert len(lines) == 200
    assert {record.levelname for record in lines} == {"INFO"}


@pytest.mark.slow
def test_the_peer_of_a_dial_that_gives_up_sees_no_death(end):
    """The dial ends at any moment of the set-up, also just when the other end has its link."""
    stays, dials = end(1, lanes_per_link=1), end(2, lanes_per_link=1)
    for round_ in range(150):
        dials.link(stays, timeout_ms=1 + round_ % 15)
        dials.unlink(1, force=True)


def test_a_dial_that_runs_out_of_time_when_its_link_is_made_has_linked(end, monkeypatch):
    stays, dials = end(1, lanes_per_link=1), end(2, lanes_per_link=1)
    unless_withdrawn = Setup.unless_withdrawn

    async def cancelled_when_done(self, work):
        outcome = await unless_withdrawn(self, work)
        if isinstance(outcome, Link):
            raise asyncio.CancelledError
        return outcome

    monkeypatch.setattr(Setup, "unless_withdrawn", cancelled_when_done)
    assert dials.link(stays)[0].is_ok
    stays.plane.wait(1)
    assert dials.linked() == [1]
    assert stays.linked() == [2]


@pytest.mark.slow
def test_the_peer_of_a_dialing_instance_that_is_finalized_sees_no_death(end):
    stays = end(1, lanes_per_link=1)
    for round_ in range(60):
        dials = end(2, lanes_per_link=1)

        def link(dials=dials):
            with contextlib.suppress(LLMException):  # finalized
                dials.link(stays)

        thread = threading.Thread(target=link, daemon=True)
        thread.start()
        time.sleep(0.0005 * (round_ % 20))
        dials.table.close()
        thread.join(5)
        assert not thread.is_alive()


def test_a_frozen_peer_hears_of_it_when_it_wakes_up(end, child):
    stays, peer = end(1), child(2)
    assert stays.link(peer)[0].is_ok
    peer.freeze()
    began = time.monotonic()
    stays.table.close()
    assert time.monotonic() - began < 1.0


def test_an_instance_that_ends_while_it_is_unlinked_answers_first(end, monkeypatch):
    """A program may end as soon as its link is gone: the peer that unlinked must not fail."""
    ends, unlinks = end(1), end(2)
    assert unlinks.link(ends)[0].is_ok
    link = ends.table.get(2)
    disconnect = ends.plane.disconnect

    def slow(data):
        time.sleep(0.2)
        disconnect(data)

    monkeypatch.setattr(ends.plane, "disconnect", slow)
    results = []
    thread = threading.Thread(target=lambda: results.extend(unlinks.unlink(1)), daemon=True)
    thread.start()
    assert link.lost.wait(5)
    ends.table.close()
    thread.join(5)
    assert [result.is_ok for result in results] == [True], results
