"""link_clusters and unlink_clusters over dials and links that only record."""

import asyncio

import pytest

from llm_datadist import LLMClusterInfo
from llm_datadist._control.deadline import Deadline
from llm_datadist._errors import LLMStatusCode
from llm_datadist._links import requests
from llm_datadist._links.dial_request import DialOutcome
from llm_datadist._links.link import LinkResult, LinkState
from llm_datadist._links.requests import LinkRequests
from llm_datadist._links.state import Relink

S = LLMStatusCode
OK = LinkResult(S.LLM_SUCCESS)
NAMED, NEAR, FAR = ("10.0.0.1", 1), ("10.0.0.2", 2), ("10.0.0.3", 3)


def info_of(*remote, cluster_id=None, local=None):
    info = LLMClusterInfo()
    for address in remote:
        info.append_remote_ip_info(*address)
    if local is not None:
        info.append_local_ip_info(*local)
    if cluster_id is not None:
        info.remote_cluster_id = cluster_id
    return info


class World:
    """Takes the place of dials, of the life cycle of links, and of the reconnector."""

    def __init__(self, context, monkeypatch):
        self.context = context
        self.outcomes = {}
        self.dialed, self.unlinked, self.canceled = [], [], []
        self.unlink_result = OK
        monkeypatch.setattr(requests, "dial", self.dial)
        monkeypatch.setattr(requests, "resolve", self.resolve)
        self.requests = LinkRequests(context, self, self)

    async def dial(self, context, lifecycle, request):
        self.dialed.append(request)
        return self.outcomes[request.address]

    async def resolve(self, address, resolvers):
        if address[0] == "unknown":
            raise OSError("no such host")
        return [(2, NAMED)]

    async def unlink(self, link, deadline, *, wait_for_peer):
        self.unlinked.append((link, wait_for_peer))
        return self.unlink_result

    async def cancel(self, lost):
        self.canceled += lost

    async def cancel_replaced(self, link):
        self.canceled.append(link)

    def answers(self, address, link, *, is_new=True):
        self.outcomes[address] = DialOutcome(LinkResult(S.LLM_SUCCESS, link=link), is_new)

    def fails(self, address, status=S.LLM_LINK_FAILED, *, answered=True):
        result = LinkResult(status, f"{address[0]} failed")
        self.outcomes[address] = DialOutcome(result, answered=answered)

    def link(self, *infos):
        return asyncio.run(self.requests.link_all(infos, Deadline(5)))

    def unlink_all(self, *infos, force=False):
        return asyncio.run(self.requests.unlink_all(infos, Deadline(5), force=force))

    def dial_any(self, *addresses):
        return asyncio.run(self.requests.dial_any(addresses, Deadline(6), 2, None, None))


@pytest.fixture
def world(context, monkeypatch):
    return World(context, monkeypatch)


def test_results_are_in_the_order_of_the_call(world, make_link):
    one, two = make_link(2), make_link(3)
    world.answers(NEAR, one)
    world.fails(NAMED, S.LLM_TIMEOUT)
    world.answers(FAR, two)
    results = world.link(info_of(NEAR), info_of(NAMED), info_of(FAR, cluster_id=3, local=NEAR))
    assert [result.link for result in results] == [one, None, two]
    assert results[1].status is S.LLM_TIMEOUT
    assert world.canceled == [one, two]
    last = world.dialed[-1]
    assert (last.expected_cluster_id, last.source_ip) == (3, NEAR[0])


def test_all_addresses_are_of_one_instance(world, make_link):
    link = make_link(2)
    world.answers(NEAR, link)
    world.answers(FAR, link, is_new=False)
    (result,) = world.link(info_of(NEAR, FAR))
    assert result.link is link
    assert [dial.expected_incarnation for dial in world.dialed] == [None, link.incarnation]


@pytest.mark.parametrize("is_new", [True, False])
def test_a_failure_at_a_later_address_takes_back_what_the_call_has_made(world, make_link, is_new):
    link = make_link(2)
    world.answers(NEAR, link, is_new=is_new)
    world.fails(FAR)
    (result,) = world.link(info_of(NEAR, FAR))
    assert result.status is S.LLM_LINK_FAILED
    assert world.unlinked == ([(link, False)] if is_new else [])


def test_any_address_will_do_for_a_domain(world, make_link):
    link = make_link(2)
    world.fails(NEAR)
    world.answers(FAR, link)
    assert world.dial_any(NEAR, FAR, NAMED).link is link
    assert [dial.address for dial in world.dialed] == [NEAR, FAR]
    assert world.dialed[0].deadline.seconds == pytest.approx(2, abs=0.1)  # a third of the time


def test_what_a_peer_answered_is_said_before_connections_that_failed(world):
    world.fails(NEAR, S.LLM_TIMEOUT, answered=False)
    world.fails(FAR, S.LLM_NOT_YET_LINK)
    result = world.dial_any(NEAR, FAR)
    assert result.status is S.LLM_NOT_YET_LINK
    assert result.reason == f"{FAR[0]} failed; {NEAR[0]} failed"
    assert world.dial_any().status is S.LLM_PARAM_INVALID


@pytest.fixture
def pauses(world, monkeypatch):
    """The pauses between dials: each ends at once, and with the third the peer answers."""
    pauses = []

    async def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            world.answers(NEAR, None)

    monkeypatch.setattr(requests.asyncio, "sleep", pause)
    return pauses


def test_a_peer_of_the_first_generation_is_dialed_until_it_answers(world, context, pauses):
    context.first_generation = True
    world.fails(NEAR, answered=False)
    (result,) = world.link(info_of(NEAR))
    assert result.is_ok
    assert pauses == sorted(set(pauses))
    assert len(world.dialed) == 4


@pytest.mark.parametrize(("first_generation", "answered"), [(False, False), (True, True)])
def test_no_other_dial_is_repeated(world, context, pauses, first_generation, answered):
    context.first_generation = first_generation
    world.fails(NEAR, answered=answered)
    (result,) = world.link(info_of(NEAR))
    assert (result.status, pauses) == (S.LLM_LINK_FAILED, [])


def test_no_pause_is_longer_than_the_time_left(world, context, pauses):
    context.first_generation = True
    world.fails(NEAR, answered=False)
    results = asyncio.run(world.requests.link_all([info_of(NEAR)], Deadline(0.01)))
    assert (results[0].status, pauses) == (S.LLM_LINK_FAILED, [])


@pytest.mark.parametrize("force", [True, False])
def test_a_link_is_found_by_id_before_any_address(world, context, make_link, force):
    one, other = make_link(2), make_link(3)
    context.index.add(one)
    context.index.add(other)
    (result,) = world.unlink_all(info_of(other.address, cluster_id=2), force=force)
    assert result == OK
    assert world.unlinked == [(one, not force)]


def test_a_link_is_found_by_any_address_and_by_a_name(world, context, make_link):
    link = make_link(2)
    link.addresses = {NAMED, FAR}
    context.index.add(link)
    for info in (info_of(NEAR, FAR), info_of(("unknown", 1), ("a-host", 1))):
        assert world.unlink_all(info) == [OK]
        assert world.unlinked.pop() == (link, True)


def test_what_is_not_linked_is_a_success(world):
    assert world.unlink_all(info_of(NEAR), info_of(cluster_id=9)) == [OK, OK]
    assert world.unlinked == []


def test_a_peer_that_cannot_be_notified_is_the_result(world, context, make_link):
    context.index.add(make_link(2))
    world.unlink_result = LinkResult(S.LLM_NOTIFY_PROMPT_UNLINK_FAILED, "no answer")
    assert world.unlink_all(info_of(cluster_id=2)) == [world.unlink_result]


@pytest.mark.parametrize("how", ["dead", "relinked"])
@pytest.mark.parametrize("force", [True, False])
def test_a_lost_link_is_ended_and_its_peer_cannot_be_notified(
    world, context, make_link, how, force
):
    async def work():
        link = make_link(2)
        link.enter(LinkState.LOST, "cut off")
        if how == "dead":
            context.index.remember_death(link)
        else:
            context.index.relinks[2] = Relink(link)
        return link, await world.requests.unlink_all(
            [info_of(cluster_id=2)], Deadline(5), force=force
        )

    link, (result,) = asyncio.run(work())
    assert world.canceled == [link]
    assert context.index.dead == {}
    if force:
        assert result == OK
    else:
        assert result.status is S.LLM_NOTIFY_PROMPT_UNLINK_FAILED
        assert "cut off; this end is unlinked" in result.reason
