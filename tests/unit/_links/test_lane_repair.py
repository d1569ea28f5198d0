"""Replacing lost lanes, with a data plane that only counts them."""

import asyncio

import pytest

from llm_datadist._control.connection import PeerClosedError
from llm_datadist._links import lane_repair
from llm_datadist._links.lane_repair import LaneRepair
from llm_datadist._protocol.codec import ProtocolError
from llm_datadist._protocol.handshake import Side
from llm_datadist._protocol.messages import Reopen


class Lane:
    def detach(self):
        return self


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    for name in ("_FIRST_PAUSE", "_LONGEST_PAUSE", "_REQUEST_PAUSE", "_LONGEST_DELAY"):
        monkeypatch.setattr(lane_repair, name, 0.001)


@pytest.fixture
def opened(monkeypatch):
    """Places of each attempt to open lanes; and exceptions, each of which fails one attempt."""
    attempts, failures = [], []

    async def open_lanes(route, terms, places, connect_seconds):
        attempts.append(list(places))
        if failures:
            raise failures.pop()
        clients = [Lane() for side, _ in places if side is Side.ACCEPTOR]
        return clients, [Lane() for _ in range(len(places) - len(clients))]

    monkeypatch.setattr(lane_repair, "open_lanes", open_lanes)
    return attempts, failures


async def until(condition):
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not happen")


def test_the_dialing_end_opens_what_is_missing(context, make_link, opened):
    async def run():
        repair, link = LaneRepair(context), make_link()
        repair.add_link(link)
        context.delegate.missing = (2, 1)
        repair.start(link)
        repair.start(link)  # one task is enough
        await until(lambda: context.delegate.missing == (0, 0))

    asyncio.run(run())
    assert opened[0] == [[(Side.ACCEPTOR, 0), (Side.ACCEPTOR, 1), (Side.DIALER, 0)]]


def test_after_a_failure_one_lane_probes_the_peer(context, make_link, opened):
    attempts, failures = opened
    failures += [OSError("refused"), OSError("refused")]

    async def run():
        repair, link = LaneRepair(context), make_link()
        repair.add_link(link)
        context.delegate.missing = (2, 0)
        repair.start(link)
        await until(lambda: context.delegate.missing == (0, 0))

    asyncio.run(run())
    assert [len(places) for places in attempts] == [2, 1, 1, 1]


def test_lanes_that_the_accepting_end_requests_are_opened(context, make_link, opened):
    async def run():
        repair, link = LaneRepair(context), make_link()
        repair.add_link(link)
        repair.on_reopen(link, 2)
        await until(lambda: context.delegate.added)

    asyncio.run(run())
    assert opened[0] == [[(Side.DIALER, 0), (Side.DIALER, 1)]]


@pytest.mark.parametrize(("dialed", "num_lanes"), [(True, 3), (False, 1)])
def test_a_reopen_that_no_correct_peer_sends(context, make_link, dialed, num_lanes):
    repair, link = LaneRepair(context), make_link(dialed=dialed)
    repair.add_link(link)
    with pytest.raises(ProtocolError, match=f"Reopen of {num_lanes} lanes"):
        repair.on_reopen(link, num_lanes)


def test_the_accepting_end_asks_until_the_lanes_are_there(context, make_link):
    async def run():
        repair, link = LaneRepair(context), make_link(dialed=False)
        repair.add_link(link)
        context.delegate.missing = (1, 0)
        repair.start(link)
        sent = link.conversation.connection.sent
        await until(lambda: len(sent) >= 2)
        context.sessions[link.terms.session].add((Side.DIALER, 0), Lane())
        await until(lambda: link not in repair._repairs or repair._repairs[link].task.done())
        assert set(sent) == {Reopen(num_lanes=1)}

    asyncio.run(run())


def test_a_lane_that_is_not_missing_is_refused(context, make_link):
    repair, link = LaneRepair(context), make_link(dialed=False)
    repair.add_link(link)
    for place in ((Side.DIALER, 0), (Side.ACCEPTOR, 0)):
        context.delegate.missing = (0, -6)
        with pytest.raises(PeerClosedError):
            repair.add_lane(link, place, Lane())
    session = context.sessions[link.terms.session]
    repair.remove_link(link)
    assert list(context.ended_sessions) == [link.terms.session]
    with pytest.raises(PeerClosedError, match="has ended"):
        session.add((Side.DIALER, 0), Lane())


def test_the_end_of_a_link_ends_its_repair(context, make_link, opened):
    _, failures = opened
    failures += [OSError("refused")] * 100

    async def run():
        repair, link = LaneRepair(context), make_link()
        repair.add_link(link)
        context.delegate.missing = (1, 0)
        repair.start(link)
        task = repair._repairs[link].task
        await until(lambda: len(failures) < 99)
        repair.remove_link(link)
        repair.remove_link(link)
        await asyncio.wait([task])
        assert task.cancelled()
        repair.start(link)
        assert not context.delegate.added

    asyncio.run(run())
