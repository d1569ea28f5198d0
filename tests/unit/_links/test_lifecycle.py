"""Links put into use and taken down, without a peer."""

import asyncio

import pytest

from llm_datadist._control.connection import PeerClosedError
from llm_datadist._control.deadline import Deadline
from llm_datadist._errors import LLMStatusCode
from llm_datadist._links.context import SetupError
from llm_datadist._links.lane_repair import LaneRepair
from llm_datadist._links.lifecycle import LinkLifecycle
from llm_datadist._links.link import LinkState
from llm_datadist._protocol.messages import Unlink, Unlinked


@pytest.fixture
def lifecycle(context):
    lifecycle = LinkLifecycle(context, LaneRepair(context))
    lifecycle.linked, lifecycle.lost = [], []
    lifecycle.on_linked = lifecycle.linked.append
    lifecycle.on_lost = lifecycle.lost.append
    return lifecycle


@pytest.fixture
def install(lifecycle, connection, make_link):
    """Install a link to cluster 2; for use inside a running loop."""

    def install():
        like = make_link(2)
        return lifecycle.install(like.peer, 7, "data", connection, like.terms, "clusters")

    return install


@pytest.mark.expects_log("lost: closed at this end")  # as the loop ends with the link up
def test_an_installed_link_is_up_and_announced(context, lifecycle, install):
    async def run():
        link = install()
        assert context.index.links == {2: link}
        assert lifecycle.linked == [link]
        assert (link.state, link.generation, link.holders) == (
            LinkState.LINKED,
            1,
            frozenset({"clusters"}),
        )

    asyncio.run(run())


def test_no_link_is_installed_after_finalize(context, install):
    async def run():
        context.is_closed = True
        with pytest.raises(SetupError, match="was finalized"):
            install()
        assert not context.index.links

    asyncio.run(run())


@pytest.mark.expects_log("link to cluster 2 at .* lost: cut off")
@pytest.mark.parametrize("died", [True, False])
def test_a_lost_link_is_disconnected_and_announced_once(
    context, lifecycle, connection, install, died
):
    told = []
    context.hooks.on_lost = told.append

    async def run():
        link = install()
        await lifecycle.drop(link, "cut off", died=died)
        lifecycle.lose(link, "again")
        await asyncio.sleep(0)
        assert link.state is LinkState.GONE
        assert context.delegate.disconnected == ["data"]
        assert lifecycle.lost == told == [link]
        assert (2 in context.index.dead) is died
        assert not connection.is_open

    asyncio.run(run())


@pytest.mark.expects_log("link to cluster 2 at .* lost: cut off")
def test_no_lane_joins_a_link_that_has_ended(context, lifecycle, connection, make_link):
    async def run():
        like = make_link(2, dialed=False)
        link = lifecycle.install(like.peer, 7, "data", connection, like.terms, "clusters")
        assert link.terms.session in context.sessions
        await lifecycle.drop(link, "cut off")
        assert context.sessions == {}
        assert link.terms.session in context.ended_sessions
        assert 2 in context.index.dead

    asyncio.run(run())


def test_an_unlink_that_the_peer_does_not_answer(context, lifecycle, connection, install):
    async def run():
        link = install()
        result = await lifecycle.unlink(link, Deadline(0.01), wait_for_peer=True)
        assert result.status is LLMStatusCode.LLM_NOTIFY_PROMPT_UNLINK_FAILED
        assert "did not answer within 10 ms" in result.reason
        assert link.state is LinkState.GONE
        again = await lifecycle.unlink(link, Deadline(0.01), wait_for_peer=True)
        assert again.is_ok

    asyncio.run(run())
    assert connection.sent == [Unlink(reason="unlinked by the peer")]
    assert lifecycle.lost == []
    assert len(context.unlinked_sessions) == 2


def test_the_data_of_ended_links_is_the_callers(context, lifecycle, connection, install):
    async def run():
        link = install()
        assert lifecycle.end_all("the instance was finalized") == [link]
        assert link.reason == "the instance was finalized"

    asyncio.run(run())
    assert context.delegate.disconnected == []
    assert connection.sent == [Unlink(reason="the peer was finalized")]


@pytest.mark.parametrize("how", ["unlink", "finalize"])
def test_what_may_still_be_sent_is_sent_before_the_unlink(
    context, lifecycle, connection, install, how
):
    sent = []
    context.hooks.on_unlink = lambda: sent.append(list(connection.sent))

    async def run():
        link = install()
        if how == "unlink":
            await lifecycle.unlink(link, Deadline(60), wait_for_peer=False)
        else:
            lifecycle.end_all("the instance was finalized")

    asyncio.run(run())
    assert sent == [[]]
    assert len(connection.sent) == 1


@pytest.fixture
def disconnecting(context):
    """Let `disconnect` run until the event is set, as if a transfer still touched memory."""
    context.delegate.may_end = asyncio.Event()

    async def outcome(future):
        await context.delegate.may_end.wait()
        return future.result()

    context.workers.outcome = outcome
    return context.delegate.may_end


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("wait_for_peer", [True, False])
def test_an_unlink_returns_when_no_transfer_touches_memory(
    lifecycle, connection, install, disconnecting, wait_for_peer
):
    async def run():
        link = install()
        unlink = lifecycle.unlink(link, Deadline(60), wait_for_peer=wait_for_peer)
        unlinking = asyncio.ensure_future(unlink)
        connection.arriving.put_nowait(Unlinked())
        await settle()
        assert not unlinking.done()
        disconnecting.set()
        assert (await unlinking).is_ok
        assert link.state is LinkState.GONE

    asyncio.run(run())


def test_the_peers_unlink_is_confirmed_when_no_transfer_touches_memory(
    lifecycle, connection, install, disconnecting
):
    async def run():
        link = install()
        connection.arriving.put_nowait(Unlink(reason="unlinked by the peer"))
        await settle()
        assert link.state is LinkState.UNLINKING
        assert connection.sent == []
        disconnecting.set()
        await settle()
        assert connection.sent == [Unlinked()]
        assert lifecycle.lost == []

    asyncio.run(run())


@pytest.mark.parametrize("end", [Unlinked(), PeerClosedError("the peer closed the connection")])
def test_unlinks_of_both_ends_that_cross_both_succeed(
    lifecycle, connection, install, disconnecting, end
):
    """Also if the peer does not confirm: its own unlink says that its end is gone, or will be."""

    async def run():
        unlink = lifecycle.unlink(install(), Deadline(60), wait_for_peer=True)
        unlinking = asyncio.ensure_future(unlink)
        await settle()
        connection.arriving.put_nowait(Unlink(reason="unlinked by the peer"))
        connection.arriving.put_nowait(end)
        await settle()
        disconnecting.set()
        assert (await unlinking).is_ok
        assert connection.sent == [Unlink(reason="unlinked by the peer"), Unlinked()]

    asyncio.run(run())


def test_a_peer_that_ends_without_an_answer_could_not_be_notified(lifecycle, connection, install):
    async def run():
        unlink = lifecycle.unlink(install(), Deadline(60), wait_for_peer=True)
        connection.arriving.put_nowait(PeerClosedError("the peer closed the connection"))
        result = await unlink
        assert result.status is LLMStatusCode.LLM_NOTIFY_PROMPT_UNLINK_FAILED
        assert "closed the connection without an answer" in result.reason

    asyncio.run(run())
