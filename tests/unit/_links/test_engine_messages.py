"""Errors of messages over a link, from the answers of its conversation."""

import asyncio

import pytest

from llm_datadist._control.connection import PeerClosedError
from llm_datadist._control.conversation import RemoteError
from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._links.engine_messages import EngineMessages
from llm_datadist._protocol.messages import Notify

S = LLMStatusCode


def raises(error):
    async def answer():
        raise error

    return answer


async def never():
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("answer", "status", "text"),
    [
        (never, S.LLM_TIMEOUT, "did not answer within 10 ms"),
        (raises(PeerClosedError("it broke")), S.LLM_LINK_FAILED, "it broke"),
        (raises(RemoteError("full")), S.LLM_FAILED, "the peer could not do it: full"),
    ],
)
def test_a_request_without_an_answer(context, make_link, answer, status, text):
    link = make_link(2)
    link.conversation.answer = answer
    messages = EngineMessages(context)
    with pytest.raises(LLMException, match=text) as caught:
        asyncio.run(messages.request(link, b"", 10, "renew"))
    error = caught.value
    assert (error.status_code, error.operation, error.cluster_id) == (status, "renew", 2)
    (failure,) = asyncio.run(messages.request_all([link], b"", 10))
    assert failure.status_code is status


@pytest.mark.parametrize("state", ["open", "congested", "closed"])
def test_a_notice_that_may_be_lost_waits_for_nothing(context, make_link, state, monkeypatch):
    connection = make_link(2).conversation.connection
    link = make_link(2)
    link.conversation.connection = connection
    connection.is_congested = state == "congested"
    if state == "closed":

        def send(message):
            raise PeerClosedError("it broke")

        monkeypatch.setattr(connection, "send", send)
    assert EngineMessages(context).try_notify(link, b"body") is (state == "open")
    assert connection.sent == ([Notify(body=b"body")] if state == "open" else [])


def test_of_a_table_that_was_closed(context, make_link):
    context.is_closed = True
    link = make_link(2)
    link.conversation.answer = raises(PeerClosedError("it broke"))
    with pytest.raises(LLMException) as caught:
        asyncio.run(EngineMessages(context).ping(link, 10, "check_link_status"))
    assert caught.value.status_code is S.LLM_ENGINE_FINALIZED
