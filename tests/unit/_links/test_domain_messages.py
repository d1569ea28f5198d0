"""Entering a link for a domain, and leaving: both ends, over connections in memory."""

import asyncio

import pytest
from msgspec.structs import replace

from llm_datadist._control.deadline import Deadline
from llm_datadist._errors import LLMStatusCode
from llm_datadist._links.delegate import Refusal
from llm_datadist._links.domain_messages import DomainMessages
from llm_datadist._protocol.messages import DomainHello, Leave

S = LLMStatusCode
DOMAIN = DomainHello(name="x", ranks={1: 0, 2: 1}, rank=0, token=7)
LEAVE = Leave(name="x", token=7, complete=True)


@pytest.fixture
def pair(end):
    """Two ends; the second one accepts every domain."""
    ends = end(1), end(2)
    for each in ends:
        each.domains = DomainMessages(each.context, each.lifecycle)
        each.lifecycle.on_domain_message = each.domains.receive
    ends[1].context.hooks.on_domain_hello = lambda domain, cluster_id: None
    ends[1].context.hooks.on_domain_join = lambda domain, link: None
    return ends


async def joined(a, b, **named):
    """Dial for the domain and join it; return the link and the outcome."""
    link = (await a.dial(b, **named)).result.link
    return link, await a.domains.join(link, DOMAIN, 5.0)


def test_both_ends_hold_a_link_that_both_have_entered(net, pair):
    a, b = pair
    entered = []
    b.context.hooks.on_domain_join = lambda domain, link: entered.append((domain, link))

    async def work():
        link, outcome = await joined(a, b, domain=DOMAIN)
        assert (outcome.status, outcome.link) == (S.LLM_SUCCESS, link)
        assert entered == [(DOMAIN, b.links[1])]
        assert link.holders == b.links[1].holders == {DOMAIN.holder}

    net.run(work)


def test_a_peer_that_calls_again_and_again_holds_the_link_once(net, pair):
    a, b = pair

    async def work():
        link, _ = await joined(a, b, domain=DOMAIN)
        for token in range(8, 12):
            again = replace(DOMAIN, token=token)
            await a.dial(b, domain=again)
            assert b.links[1].holders == {again.holder}
            await a.domains.join(link, replace(DOMAIN, token=token + 10), 5.0)
            assert len(b.links[1].holders) == 1

    net.run(work)


@pytest.mark.parametrize("refuses", ["the domain", "all domains", "by an error"])
@pytest.mark.expects_log("a domain of cluster 1")
def test_a_refusal_reaches_the_dialer_and_the_acceptor_holds_nothing(net, pair, refuses):
    a, b = pair

    def refuse(domain, link):
        if refuses == "by an error":
            raise ValueError("broken")
        return Refusal(S.LLM_NOT_YET_LINK, "not so far")

    b.context.hooks.on_domain_join = None if refuses == "all domains" else refuse
    status, words = {
        "the domain": (S.LLM_NOT_YET_LINK, "not so far"),
        "all domains": (S.LLM_LINK_FAILED, "no domains"),
        "by an error": (S.LLM_FAILED, "broken"),
    }[refuses]

    async def work():
        link, outcome = await joined(a, b)
        assert outcome.status is status
        assert words in outcome.reason
        await asyncio.sleep(0)
        assert b.links[1].holders == {"clusters"}
        assert link.alive

    net.run(work)


def test_the_answer_arrives_before_the_unlink_of_a_caller_that_saw_the_outcome(net, pair):
    a, b = pair

    def unlink_at_once(domain, link):
        b.context.control.spawn(b.lifecycle.release(link, DOMAIN.holder))

    b.context.hooks.on_domain_join = unlink_at_once

    async def work():
        link, outcome = await joined(a, b, domain=DOMAIN)
        assert outcome.status is S.LLM_SUCCESS
        await link.gone.wait()
        assert not link.died

    net.run(work)


def test_a_join_without_an_answer_leaves_the_link_as_it_is(net, pair):
    a, b = pair

    async def work():
        link = (await a.dial(b)).result.link
        b.links[1].conversation.connection.frozen = True
        outcome = await a.domains.join(link, DOMAIN, 0.02)
        assert outcome.status is S.LLM_TIMEOUT
        assert link.alive
        assert DOMAIN.holder in link.holders

    net.run(work)


def test_a_join_over_a_link_that_ends_says_so(net, pair):
    a, b = pair

    async def work():
        link = (await a.dial(b)).result.link
        b.links[1].conversation.connection.frozen = True
        joining = asyncio.ensure_future(a.domains.join(link, DOMAIN, 5.0))
        await asyncio.sleep(0)
        await a.lifecycle.unlink(link, Deadline(0), wait_for_peer=False)
        assert (await joining).status is S.LLM_LINK_FAILED
        assert (await a.domains.join(link, DOMAIN, 5.0)).status is S.LLM_LINK_FAILED

    net.run(work)


@pytest.mark.parametrize("needs", [False, True])
def test_a_peer_that_leaves_ends_the_hold_of_an_end_that_needs_the_link_no_more(net, pair, needs):
    a, b = pair
    told, heard = [], asyncio.Event()

    def leave(message, link):
        told.append((message, link))
        heard.set()
        return needs

    b.context.hooks.on_domain_leave = leave

    async def work():
        link, _ = await joined(a, b)
        far = b.links[1]
        a.domains.leave(link, LEAVE)
        await heard.wait()
        await asyncio.sleep(0)
        assert told == [(LEAVE, far)]
        assert far.holders == ({"clusters", DOMAIN.holder} if needs else {"clusters"})

    net.run(work)
