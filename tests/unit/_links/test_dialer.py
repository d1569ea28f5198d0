"""The dialing end of a set-up, against real and scripted acceptors in memory."""

import asyncio

import pytest

from llm_datadist._errors import LLMStatusCode
from llm_datadist._links import lifecycle
from llm_datadist._protocol.codec import ProtocolError
from llm_datadist._protocol.handshake import SecretMismatchError, Side, fresh_nonce
from llm_datadist._protocol.messages import Accept, Confirm, Existing, Hello, Welcome

S = LLMStatusCode
SCRIPTED = ("10.7.7.7", 7)


def linked(*ends):
    return [sorted(end.links) for end in ends]


def failed(outcome, status, *words):
    assert outcome.result.status is status, outcome
    for word in words:
        assert word in outcome.result.reason
    return True


async def greeted(stream, cluster_id=2, incarnation=77):
    """Play an acceptor up to the dialer's Confirm."""
    await stream.receive(Hello)
    stream.send(Welcome(cluster_id=cluster_id, incarnation=incarnation, nonce=fresh_nonce()))
    await stream.receive(Confirm)


def test_both_ends_have_the_link_and_paired_lanes(net, end):
    a, b = end(1, lanes_per_link=3), end(2, lanes_per_link=5)

    async def work():
        outcome = await a.dial(b)
        link, back = a.links[2], b.links[1]
        assert (outcome.is_new, outcome.result.link) == (True, link)
        assert (link.incarnation, back.incarnation) == (101, 100)
        assert (link.address, back.address) == (b.address, ("10.8.8.8", a.address[1]))
        assert link.dialed_addresses == {b.address: None}
        assert link.terms.session == back.terms.session
        for context, dialed in ((a.context, True), (b.context, False)):
            ((peer, _, clients, servers),) = context.delegate.connected
            assert (peer.dialed, peer.is_self) == (dialed, False)
            assert len(clients) == len(servers) == 2
            assert peer.most_lanes == 3
        proofs = [at.context.delegate.connected[0][0].page_proof for at in (a, b)]
        assert len(set(proofs)) == 2

    net.run(work)


def test_an_address_that_is_dialed_again_gives_the_same_link(net, end):
    a, b = end(1), end(2)

    async def work():
        first, second = await a.dial(b), await a.dial(b, expected_cluster_id=2)
        assert second.result.link is first.result.link
        assert not second.is_new
        assert (await b.dial(a)).result.link is b.links[1]

    net.run(work)


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        ({"expected_cluster_id": 9}, ["expected cluster 9", "cluster 2"]),
        ({"expected_cluster_id": 0}, ["expected cluster 0"]),  # not the same as no id
        ({"expected_incarnation": 9}, ["another instance (cluster 2) than at the first"]),
    ],
)
def test_another_peer_than_expected_is_named_and_not_linked(net, end, expected, words):
    a, b = end(1), end(2)

    async def work():
        assert failed(await a.dial(b, **expected), S.LLM_LINK_FAILED, *words)
        assert linked(a, b) == [[], []]

    net.run(work)


def test_an_instance_dials_itself(net, end):
    a = end(4)

    async def work():
        link = (await a.dial(a)).result.link
        assert link.peer.is_self
        assert linked(a) == [[4]]
        assert len(a.context.delegate.connected) == 2
        assert (await a.dial(a)).result.link is link

    net.run(work)


@pytest.mark.parametrize("incarnations", [(10, 20), (20, 10)])
def test_ends_that_dial_each_other_share_one_link(net, end, incarnations):
    a, b = end(1, incarnations[0]), end(2, incarnations[1])

    async def work():
        one, other = await asyncio.gather(a.dial(b), b.dial(a))
        assert (one.result.link, other.result.link) == (a.links[2], b.links[1])
        assert len(a.context.delegate.connected) == len(b.context.delegate.connected) == 1

    net.run(work)


def test_calls_at_once_share_one_link(net, end):
    a, b = end(1), end(2)

    async def work():
        outcomes = await asyncio.gather(*(a.dial(b) for _ in range(3)))
        assert {outcome.result.link for outcome in outcomes} == {a.links[2]}
        assert [outcome.is_new for outcome in outcomes] == [True, False, False]
        assert len(a.context.delegate.connected) == 1

    net.run(work)


def test_an_id_of_another_live_peer(net, end):
    a, b, c = end(1), end(2), end(2)

    async def work():
        await a.dial(b)
        assert failed(await a.dial(c), S.LLM_ALREADY_LINK, "another live instance", b.address[0])
        assert a.links[2].incarnation == b.context.incarnation
        assert linked(c) == [[]]

    net.run(work)


@pytest.mark.expects_log("another took its id", "lost: the peer closed the connection")
def test_an_id_of_a_peer_that_does_not_answer_is_taken_over(net, end, monkeypatch):
    monkeypatch.setattr(lifecycle, "_ALIVE_SECONDS", 0.01)
    a, b, c = end(1), end(2), end(2)

    async def work():
        await a.dial(b)
        net.connections[0][1].frozen = True
        a.context.delegate.answers = False
        assert (await a.dial(c)).is_new
        assert a.links[2].incarnation == c.context.incarnation

    net.run(work)


@pytest.mark.parametrize(
    ("failure", "answered", "words"),
    [
        (ProtocolError("frame of 9 bytes"), True, ["no llm-datadist of this version", "versions"]),
        (SecretMismatchError("no proof"), True, ["another secret", "link_secret"]),
    ],
)
def test_what_answers_does_not_speak_the_protocol(net, end, failure, answered, words):
    async def answer(stream):
        await stream.receive(Hello)
        stream.connection.other.inbox.put_nowait(failure)

    async def work():
        outcome = await end(1).dial(SCRIPTED)
        assert failed(outcome, S.LLM_LINK_FAILED, *words)
        assert outcome.answered is answered

    net.scripts[SCRIPTED] = answer
    net.run(work)


def test_a_connection_that_closes_is_no_answer(net, end):
    async def close(stream):
        stream.connection.close()

    async def work():
        outcome = await end(1).dial(SCRIPTED)
        assert failed(outcome, S.LLM_LINK_FAILED, "waiting for the peer's greeting", "listens")
        assert not outcome.answered

    net.scripts[SCRIPTED] = close
    net.run(work)


def test_a_timeout_names_the_step(net, end):
    async def work():
        outcome = await end(1).dial(SCRIPTED, 0.02)
        assert failed(outcome, S.LLM_TIMEOUT, "within 20 ms", "the peer's consent", "timeout")
        assert not outcome.answered

    net.scripts[SCRIPTED] = greeted
    net.run(work)


def test_what_listens_and_does_not_answer_is_left_early(net, end):
    async def silent(stream):
        await stream.receive(Hello)

    async def work():
        outcome = await end(1).dial(SCRIPTED, 5.0, answer_seconds=0.02)
        assert failed(outcome, S.LLM_TIMEOUT, "within 20 ms", "no answer from what listens")

    net.scripts[SCRIPTED] = silent
    net.run(work)


def test_a_peer_that_has_answered_is_not_cut(net, end):
    """It has until the deadline, for however short a time it had to answer."""

    async def slow(stream):
        await greeted(stream)
        await asyncio.sleep(0.05)
        stream.give_up(S.LLM_NOT_YET_LINK, "after all")

    async def work():
        outcome = await end(1).dial(SCRIPTED, 5.0, answer_seconds=0.02)
        assert failed(outcome, S.LLM_NOT_YET_LINK, "after all")

    net.scripts[SCRIPTED] = slow
    net.run(work)


def test_a_link_that_the_peer_finds_and_this_end_does_not_is_tried_a_few_times(net, end):
    async def find(stream):
        await greeted(stream)
        stream.send(Existing())

    async def work():
        assert failed(await end(1).dial(SCRIPTED), S.LLM_LINK_FAILED, "keeps changing", "again")
        assert len(net.connections) == 8

    net.scripts[SCRIPTED] = find
    net.run(work)


def test_a_peer_that_is_busy_is_dialed_again_after_growing_pauses(net, end):
    times = []

    async def be_busy(stream):
        times.append(asyncio.get_running_loop().time())
        await greeted(stream)
        status = S.LLM_PROCESSING_LINK if len(times) < 4 else S.LLM_NOT_YET_LINK
        stream.give_up(status, "not now")

    async def work():
        assert failed(await end(1).dial(SCRIPTED), S.LLM_NOT_YET_LINK, "not now")
        assert times[-1] - times[0] >= 0.069  # 10, 20 and 40 ms, and the resolution of the clock

    net.scripts[SCRIPTED] = be_busy
    net.run(work)


@pytest.mark.parametrize("status", [S.LLM_NOT_YET_LINK, S.LLM_PROCESSING_LINK])
def test_the_connection_of_a_dial_that_fails_is_closed(net, end, status):
    async def refuse(stream):
        await greeted(stream)
        stream.give_up(status, "not now")

    async def work():
        await end(1).dial(SCRIPTED, 0.02)
        assert all(dialed.is_closing for dialed, _ in net.connections)

    net.scripts[SCRIPTED] = refuse
    net.run(work)


def test_encrypted_lanes_outside_tls_are_refused(net, end):
    async def accept(stream):
        await greeted(stream)
        stream.send(Accept(session=bytes(16), num_lanes=1, endpoint=b"", encrypt_lanes=True))

    async def work():
        a = end(1)
        assert failed(
            await a.dial(SCRIPTED), S.LLM_LINK_FAILED, "encrypted lanes of a link outside"
        )
        assert a.context.delegate.connected == []

    net.scripts[SCRIPTED] = accept
    net.run(work)


def test_a_lane_that_breaks_fails_both_ends(net, end):
    a, b = end(1), end(2)
    net.lane_failure = EOFError("closed by the peer")

    async def work():
        outcome = await a.dial(b)
        assert failed(outcome, S.LLM_LINK_FAILED, "a data lane broke", "closed by the peer", "log")
        await net.settled()
        assert linked(a, b) == [[], []]
        assert b.context.sessions == {}
        assert (await a.dial(b)).is_new

    net.run(work)


@pytest.mark.expects_log("link to cluster . refused: no way to that memory")
@pytest.mark.parametrize("refuses", [Side.DIALER, Side.ACCEPTOR])
def test_a_data_plane_that_refuses_leaves_nothing(net, end, refuses):
    a, b = end(1), end(2)
    side = a if refuses is Side.DIALER else b
    side.context.delegate.refusal = RuntimeError("no way to that memory")

    async def work():
        assert failed(await a.dial(b), S.LLM_LINK_FAILED, "no way to that memory")
        await net.settled()
        assert linked(a, b) == [[], []]
        made = [end.context.delegate for end in (a, b)]
        assert [len(each.connected) for each in made] == [len(each.disconnected) for each in made]
        side.context.delegate.refusal = None
        assert (await a.dial(b)).is_new

    net.run(work)


@pytest.mark.parametrize("closed", [Side.DIALER, Side.ACCEPTOR])
def test_an_instance_that_is_finalized_meanwhile_installs_no_link(net, end, closed):
    a, b = end(1), end(2)
    (a if closed is Side.DIALER else b).context.is_closed = True

    async def work():
        assert failed(await a.dial(b), S.LLM_LINK_FAILED, "was finalized while the link was set up")
        await net.settled()
        assert linked(a) == [[]]
        for delegate in (a.context.delegate, b.context.delegate):
            assert len(delegate.connected) == len(delegate.disconnected)

    net.run(work)
