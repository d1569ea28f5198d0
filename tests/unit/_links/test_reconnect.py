"""Re-establishing lost links, with dials that only record."""

import asyncio
from types import SimpleNamespace

import pytest

from llm_datadist._errors import LLMStatusCode
from llm_datadist._links import reconnect
from llm_datadist._links.dial_request import DialOutcome
from llm_datadist._links.link import LinkResult, LinkState
from llm_datadist._links.reconnect import Reconnector
from llm_datadist._links.state import Setup

S = LLMStatusCode


class Dials:
    """Takes the place of `dial`: records the requests and fails with `status`."""

    def __init__(self, monkeypatch):
        self.requests = []
        self.status = S.LLM_LINK_FAILED
        self.answered = False
        self.once = asyncio.Event()
        monkeypatch.setattr(reconnect, "dial", self)
        monkeypatch.setattr(reconnect, "_FIRST_PAUSE", 0.001)
        monkeypatch.setattr(reconnect, "_DIALS_PER_SECOND", 10_000)

    async def __call__(self, context, lifecycle, request):
        self.requests.append(request)
        self.once.set()
        return DialOutcome(LinkResult(self.status, "no"), answered=self.answered)


@pytest.fixture
def dials(monkeypatch):
    return Dials(monkeypatch)


@pytest.fixture
def reconnector(context):
    return Reconnector(context, None)


def lost(make_link, cluster_id=2):
    link = make_link(cluster_id)
    link.dialed_addresses = {("127.0.0.1", 1000 + cluster_id): None}
    link.enter(LinkState.LOST, "cut off")
    return link


def test_a_link_that_a_call_made_is_dialed_at_its_address(reconnector, make_link, dials):
    async def run():
        reconnector.on_lost(lost(make_link))
        await asyncio.wait_for(dials.once.wait(), 5)
        await reconnector.cancel_all()

    asyncio.run(run())
    request = dials.requests[0]
    assert (request.address, request.expected_cluster_id) == (("127.0.0.1", 1002), 2)
    assert request.relink.attempts == len(dials.requests)
    assert reconnector.describe() == []


def test_what_is_pending_is_described(reconnector, make_link, dials):
    async def run():
        reconnector.on_lost(lost(make_link))
        await asyncio.wait_for(dials.once.wait(), 5)
        await asyncio.sleep(0)
        (facts,) = reconnector.describe()
        await reconnector.cancel_all()
        return facts

    facts = asyncio.run(run())
    assert (facts["cluster_id"], facts["lost"], facts["failure"]) == (2, "cut off", "no")


@pytest.mark.parametrize("why", ["not by a call", "closed", "linked already"])
def test_a_link_that_is_not_re_established(context, reconnector, make_link, why):
    link = lost(make_link)
    if why == "not by a call":
        link.dialed_addresses = {}
    elif why == "closed":
        reconnector.close()
    else:
        context.index.add(make_link(2))
    reconnector.on_lost(link)
    assert reconnector.describe() == []


def test_with_the_option_off_nothing_is_re_established(make_context, make_link):
    reconnector = Reconnector(make_context(auto_relink=False), None)
    reconnector.on_lost(lost(make_link))
    assert reconnector.describe() == []


def test_a_peer_that_has_unlinked_is_dialed_once(reconnector, make_link, dials):
    dials.status = S.LLM_NOT_YET_LINK

    async def run():
        reconnector.on_lost(lost(make_link))
        (relink,) = reconnector._pending.values()
        await asyncio.wait_for(relink.task, 5)

    asyncio.run(run())
    assert len(dials.requests) == 1
    assert reconnector.describe() == []


@pytest.mark.parametrize("by_own_dial", [True, False])
def test_a_new_link_takes_over_what_the_lost_one_had(
    context, reconnector, make_link, dials, by_own_dial
):
    async def run():
        before = lost(make_link)
        reconnector.on_lost(before)
        (relink,) = reconnector._pending.values()
        link = make_link(2, dialed=by_own_dial)
        if by_own_dial:
            context.index.dials[link.incarnation] = Setup(2, link.incarnation, relink)
        reconnector.on_linked(link)
        assert link.holders == frozenset({"clusters"})
        assert link.dialed_addresses == before.dialed_addresses
        assert reconnector.num_reconnects(2) == reconnector.num_relinked == by_own_dial
        relink.task.cancel()

    asyncio.run(run())
    assert reconnector.describe() == []


def test_a_call_that_finds_another_cluster_at_the_address(reconnector, make_link, dials):
    async def run():
        reconnector.on_lost(lost(make_link, 2))
        reconnector.on_lost(lost(make_link, 3))
        found = make_link(4)
        found.dialed_addresses = {("127.0.0.1", 1002): None}
        await reconnector.cancel_replaced(found)
        left = [facts["cluster_id"] for facts in reconnector.describe()]
        await reconnector.cancel_all()
        return left

    assert asyncio.run(run()) == [3]


@pytest.mark.parametrize(("answered", "longest"), [(False, 5.0), (True, 30.0)])
def test_pauses_grow_are_randomized_and_longer_for_a_peer_that_refuses(
    monkeypatch, reconnector, make_link, dials, answered, longest
):
    pauses, shares = [], []

    async def sleep(pause):
        pauses.append(pause)
        if len(pauses) == 10:
            raise asyncio.CancelledError

    def uniform(low, high):
        shares.append((low, high))
        return high if len(shares) % 2 else low

    monkeypatch.setattr(reconnect, "asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(reconnect, "random", SimpleNamespace(uniform=uniform))
    monkeypatch.setattr(reconnect, "_FIRST_PAUSE", 1.0)
    dials.answered = answered

    async def run():
        reconnector.on_lost(lost(make_link))
        (relink,) = reconnector._pending.values()
        await asyncio.wait({relink.task})

    asyncio.run(run())
    assert set(shares) == {(0.5, 1.0)}
    steps = [min(2.0**step, longest if step else 5.0) for step in range(10)]
    assert pauses == [step * (1.0, 0.5)[at % 2] for at, step in enumerate(steps)]
