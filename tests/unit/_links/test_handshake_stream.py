"""Two ends of a handshake over a pair of queues."""

import asyncio

import pytest

from llm_datadist._control.connection import PeerClosedError
from llm_datadist._errors import LLMStatusCode
from llm_datadist._links.context import SetupError
from llm_datadist._links.handshake_stream import HandshakeStream
from llm_datadist._protocol.codec import ProtocolError
from llm_datadist._protocol.handshake import Phase, SecretMismatchError, Side, fresh_nonce
from llm_datadist._protocol.messages import (
    PROTOCOL_VERSION,
    SESSION_BYTES,
    Accept,
    Complete,
    Confirm,
    Hello,
    Ready,
    Reject,
    Unlink,
    Welcome,
)


class Connection:
    def __init__(self, inbox, outbox):
        self._inbox, self._outbox = inbox, outbox
        self.keys = None

    def send(self, message):
        self._outbox.append(message)

    async def receive(self):
        return self._inbox.pop(0)

    def authenticate(self, keys):
        self.keys = keys


def ends(*secrets):
    one, other = [], []
    return (
        HandshakeStream(Connection(one, other), Side.DIALER, secrets[0]),
        HandshakeStream(Connection(other, one), Side.ACCEPTOR, secrets[-1]),
    )


def hello():
    return Hello(version=PROTOCOL_VERSION, cluster_id=1, incarnation=5, nonce=fresh_nonce())


def pass_on(sender, receiver, message):
    sender.send(message)
    return asyncio.run(receiver.receive(type(message)))


def accepted(dialer, acceptor):
    pass_on(dialer, acceptor, hello())
    pass_on(acceptor, dialer, Welcome(cluster_id=2, incarnation=6, nonce=fresh_nonce()))
    pass_on(dialer, acceptor, Confirm(endpoint=b""))
    pass_on(acceptor, dialer, Accept(session=bytes(SESSION_BYTES), num_lanes=1, endpoint=b""))


@pytest.mark.parametrize("secret", [None, b"secret"])
def test_both_ends_prove_the_secret_and_have_tags_after_the_accept(secret):
    dialer, acceptor = ends(secret)
    accepted(dialer, acceptor)
    one, other = dialer.connection.keys, acceptor.connection.keys
    assert (one.send, one.receive) == (other.receive, other.send)
    assert dialer.handshake.lane_key() == acceptor.handshake.lane_key()


def test_another_secret_is_refused():
    dialer, acceptor = ends(b"one", b"other")
    pass_on(dialer, acceptor, hello())
    with pytest.raises(SecretMismatchError):
        pass_on(acceptor, dialer, Welcome(cluster_id=2, incarnation=6, nonce=fresh_nonce()))


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (LLMStatusCode.LLM_ALREADY_LINK, LLMStatusCode.LLM_ALREADY_LINK),
        (LLMStatusCode.LLM_SUCCESS, LLMStatusCode.LLM_LINK_FAILED),
        (12345, LLMStatusCode.LLM_LINK_FAILED),
    ],
)
def test_the_dialer_reports_a_reject_with_its_status(status, expected):
    dialer, acceptor = ends(None)
    pass_on(dialer, acceptor, hello())
    pass_on(acceptor, dialer, Welcome(cluster_id=2, incarnation=6, nonce=fresh_nonce()))
    with pytest.raises(SetupError, match="taken") as caught:
        pass_on(acceptor, dialer, Reject(status=int(status), reason="taken"))
    assert caught.value.status is expected


def test_a_reject_of_an_acceptor_that_has_proven_nothing_is_never_final():
    """LLM_PARAM_INVALID would fail a domain, and LLM_NOT_YET_LINK give a lost link up."""
    dialer, acceptor = ends(b"secret", None)
    pass_on(dialer, acceptor, hello())
    for status in LLMStatusCode:
        dialer.handshake.phase = acceptor.handshake.phase = Phase.GREETED
        with pytest.raises(SetupError, match="impossible") as caught:
            pass_on(acceptor, dialer, Reject(status=int(status), reason="impossible"))
        assert caught.value.status is LLMStatusCode.LLM_LINK_FAILED


def test_the_acceptor_takes_a_reject_for_the_end():
    dialer, acceptor = ends(None)
    accepted(dialer, acceptor)
    with pytest.raises(PeerClosedError, match="it gave up: no time"):
        pass_on(dialer, acceptor, Reject(status=1, reason="no time"))


def test_a_message_of_another_kind():
    dialer, acceptor = ends(None)
    dialer.send(hello())
    with pytest.raises(ProtocolError, match="unexpected Hello"):
        asyncio.run(acceptor.receive(Confirm))


def test_who_gives_up_after_the_link_is_up_unlinks():
    dialer, acceptor = ends(None)
    dialer.give_up(LLMStatusCode.LLM_TIMEOUT, "before the hello")  # not allowed, so not sent
    accepted(dialer, acceptor)
    pass_on(dialer, acceptor, Complete())
    pass_on(acceptor, dialer, Ready())
    dialer.give_up(LLMStatusCode.LLM_TIMEOUT, "late")
    assert asyncio.run(acceptor.receive(Unlink)) == Unlink(reason="late")
