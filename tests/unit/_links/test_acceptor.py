"""The accepting end of a set-up, against dialers that the test plays."""

import asyncio

import pytest

from llm_datadist._control.connection import PeerClosedError
from llm_datadist._errors import LLMStatusCode
from llm_datadist._links import acceptor, lifecycle
from llm_datadist._links.context import SetupError
from llm_datadist._links.state import Setup
from llm_datadist._protocol.codec import ProtocolError
from llm_datadist._protocol.handshake import Side, fresh_nonce
from llm_datadist._protocol.messages import (
    PROTOCOL_VERSION,
    Accept,
    Complete,
    Confirm,
    DomainHello,
    Existing,
    Hello,
    Pong,
    Ready,
    Reject,
    Welcome,
    Yield,
)
from support.memory_links import Lane

S = LLMStatusCode
DOMAIN = DomainHello(name="d", ranks={1: 0, 2: 1}, rank=1, token=7, acceptor=1)


async def greet(stream, **named):
    """Say hello and confirm, as cluster 2 with incarnation 200."""
    fields = {"version": PROTOCOL_VERSION, "cluster_id": 2, "incarnation": 200}
    stream.send(Hello(**fields | {"nonce": fresh_nonce()} | named))
    await stream.receive(Welcome)
    stream.send(Confirm(endpoint=b"memory"))


async def complete(end, stream):
    """Bring the lanes that the acceptor expects, and wait for the link."""
    accept = await stream.receive(Accept)
    for side in Side:
        for index in range(accept.num_lanes):
            end.context.sessions[accept.session].add((side, index), Lane())
    stream.send(Complete())
    await stream.receive(Ready)
    return accept


async def dial(end, **named):
    """Link to an end; return the dialer's connection."""
    stream, serving = end.dialed_by()
    await greet(stream, **named)
    await complete(end, stream)
    await serving
    return stream.connection


async def answer_pings(connection):
    while True:
        message = await connection.receive()
        connection.send(Pong(id=message.id))


async def refused(end, status, *words, **named):
    """Dial an end that refuses; check the reason."""
    stream, serving = end.dialed_by()
    with pytest.raises(SetupError) as caught:
        await greet(stream, **named)
        await stream.receive(Accept, Existing)
    await serving
    assert caught.value.status is status
    for word in words:
        assert word in caught.value.reason
    assert stream.connection.other.is_closing
    assert end.context.index.inbounds == end.context.sessions == {}


def test_a_link_is_up_when_the_dialer_has_the_ready(net, end):
    a = end(1, lanes_per_link=5)

    async def work():
        stream, serving = a.dialed_by()
        await greet(stream, num_lanes=3, listen=("::", 6000))
        accept = await complete(a, stream)
        await serving
        assert (accept.num_lanes, accept.most_lanes) == (2, 3)
        link = a.links[2]
        assert (link.incarnation, link.address) == (200, ("10.9.9.9", 6000))
        ((peer, endpoint, clients, servers),) = a.context.delegate.connected
        assert (endpoint, len(clients), len(servers)) == (b"memory", 2, 2)
        assert not peer.dialed
        assert a.context.index.inbounds == {}
        assert a.context.num_arriving == 0

    net.run(work)


@pytest.mark.parametrize(
    ("named", "status", "words"),
    [
        ({"version": 1}, S.LLM_LINK_FAILED, ["install the same llm-datadist"]),
        ({"expected_cluster_id": 9}, S.LLM_LINK_FAILED, ["expected cluster 9"]),
        ({"domain": DOMAIN}, S.LLM_LINK_FAILED, ["has no domains"]),
        ({"incarnation": 100}, S.LLM_LINK_FAILED, ["which does not dial itself", "address"]),
    ],
)
def test_a_dialer_that_is_refused_gets_the_reason(net, end, named, status, words):
    a = end(1)
    net.run(lambda: refused(a, status, *words, **named))


def test_a_dial_of_this_instance_that_another_has_relayed(net, end):
    a = end(1)

    async def work():
        a.context.index.dials[100] = Setup(1, 100, source=("10.0.0.1", 1))
        await refused(a, S.LLM_LINK_FAILED, "through a relay", incarnation=100, cluster_id=1)

    net.run(work)


def test_another_secret_reserves_nothing(net, end):
    a = end(1, secret=b"secret")

    async def work():
        stream, serving = a.dialed_by(b"secret")
        hello = Hello(
            version=PROTOCOL_VERSION,
            cluster_id=2,
            incarnation=200,
            nonce=fresh_nonce(),
            has_secret=True,
        )
        stream.connection.send(hello)
        await stream.connection.receive()
        stream.connection.send(Confirm(endpoint=b"", mac=bytes(32)))
        with pytest.raises(ProtocolError, match="another secret"):
            await serving
        assert stream.connection.other.is_closing
        assert a.context.num_arriving == 0

    net.run(work)


def test_when_too_many_are_set_up_a_dialer_is_sent_away(net, end, monkeypatch):
    monkeypatch.setattr(acceptor, "_ROOM_SECONDS", 0.01)
    a = end(1)

    async def work():
        a.context.num_arriving = acceptor.MAX_ARRIVING
        await refused(a, S.LLM_PROCESSING_LINK, "is setting up", "retry soon")
        assert a.context.num_arriving == acceptor.MAX_ARRIVING

    net.run(work)


def test_a_stalled_set_up_makes_room(net, end):
    a = end(1)

    async def work():
        stalled = Setup(9, 900)
        stalled._stalls = 0.0
        a.context.index.inbounds[900] = stalled
        a.context.num_arriving = acceptor.MAX_ARRIVING
        await dial(a)
        assert stalled.withdrawn.is_set()
        del a.context.index.inbounds[900]

    net.run(work)


def test_a_domain_holds_the_link_whether_it_is_new_or_not(net, end):
    a = end(1)
    a.context.hooks.on_domain_hello = lambda domain, cluster_id: None

    async def work():
        connection = await dial(a)
        link = a.links[2]
        assert link.holders == {"clusters"}
        answering = asyncio.ensure_future(answer_pings(connection))
        stream, serving = a.dialed_by()
        await greet(stream, domain=DOMAIN)
        await stream.receive(Existing)
        await serving
        answering.cancel()
        assert link.holders == {"clusters", DOMAIN.holder}

    net.run(work)


def test_a_dial_for_a_domain_does_not_drop_the_link_of_a_peer_that_is_slow(net, end, monkeypatch):
    """The two dialed each other, and the peer has not taken the link into use yet."""
    monkeypatch.setattr(lifecycle, "_ALIVE_SECONDS", 0.01)
    a = end(1)
    a.context.hooks.on_domain_hello = lambda domain, cluster_id: None

    async def work():
        connection = await dial(a)
        link = a.links[2]
        stream, serving = a.dialed_by()
        await greet(stream, domain=DOMAIN)
        await asyncio.sleep(0.05)
        answering = asyncio.ensure_future(answer_pings(connection))
        await stream.receive(Existing)
        await serving
        answering.cancel()
        assert a.links[2] is link

    net.run(work)


@pytest.mark.expects_log("it does not answer and was dialed again")
def test_a_peer_that_dials_again_and_does_not_answer_gets_a_new_link(net, end, monkeypatch):
    monkeypatch.setattr(lifecycle, "_ALIVE_SECONDS", 0.01)
    a = end(1)

    async def work():
        await dial(a)
        before = a.links[2]
        await dial(a)
        assert a.links[2] is not before
        assert before.gone.is_set()

    net.run(work)


def test_an_id_of_another_live_peer_is_refused(net, end):
    a = end(1)

    async def work():
        answering = asyncio.ensure_future(answer_pings(await dial(a)))
        stream, serving = a.dialed_by()
        await greet(stream, incarnation=201)
        with pytest.raises(SetupError, match="another live instance") as caught:
            await stream.receive(Accept)
        await serving
        answering.cancel()
        assert caught.value.status is S.LLM_ALREADY_LINK
        assert a.links[2].incarnation == 200

    net.run(work)


def test_the_end_with_the_lower_incarnation_dials_on_and_the_other_waits(net, end):
    a = end(1)  # incarnation 100

    async def work():
        own = Setup(2, 200)
        a.context.index.dials[200] = own
        stream, serving = a.dialed_by()
        await greet(stream)
        await stream.receive(Yield)
        own.ended.set()
        await serving
        assert stream.connection.other.is_closing
        assert a.links == {}

    net.run(work)


def test_a_dialer_that_gives_up_leaves_nothing(net, end):
    a = end(1)

    async def work():
        stream, serving = a.dialed_by()
        await greet(stream)
        await stream.receive(Accept)
        stream.send(Complete())  # but one lane was lost meanwhile
        stream.send(Reject(status=int(S.LLM_LINK_FAILED), reason="a data lane broke"))
        with pytest.raises(PeerClosedError, match="a data lane broke"):
            await serving
        assert a.context.sessions == a.context.index.inbounds == {}
        assert a.context.delegate.connected == []

    net.run(work)


def test_a_set_up_that_never_completes_ends(net, end, monkeypatch):
    monkeypatch.setattr(acceptor, "_SETUP_SECONDS", 0.02)
    a = end(1)

    async def work():
        stream, serving = a.dialed_by()
        await greet(stream)
        with pytest.raises(PeerClosedError, match=r"did not complete a link in 0\.02 s"):
            await serving
        assert a.context.sessions == a.context.index.inbounds == {}

    net.run(work)


def test_finalize_does_not_wait_for_set_ups_that_wait_for_each_other(net, end):
    """Without a secret a stranger can make any number of them."""
    a = end(1)

    async def work():
        stalled, first = a.dialed_by()
        await greet(stalled)
        await stalled.receive(Accept)
        waiting, second = a.dialed_by()
        await greet(waiting, incarnation=201)
        for _ in range(10):
            await asyncio.sleep(0)
        assert a.context.num_arriving == 2
        a.lifecycle.end_all("the instance was finalized")
        for _ in range(3):
            await asyncio.sleep(0)  # the loop has time for other work
        for serving in (first, second):  # as `ControlLoop.stop` does
            serving.cancel()
        await asyncio.wait({first, second})

    net.run(work)


def test_a_set_up_is_withdrawn_for_another(net, end):
    a = end(1)

    async def work():
        stream, serving = a.dialed_by()
        await greet(stream)
        await stream.receive(Accept)
        a.context.index.inbounds[200].withdrawn.set()
        with pytest.raises(SetupError, match="another set-up goes first") as caught:
            await stream.receive(Ready)
        await serving
        assert caught.value.status is S.LLM_PROCESSING_LINK

    net.run(work)
