"""What engines say to each other: one decoder, each message to its handler, nothing else."""

import msgspec
import pytest

from llm_datadist._engine.link.messages import (
    Faulted,
    Granted,
    Inbox,
    Lend,
    Refused,
    Release,
    Remapped,
    Renew,
    decode_answer,
    encode,
)
from llm_datadist._protocol.codec import ProtocolError

LINK = object()
REQUESTS = [Remapped(((4096, 8),)), Lend(1, (2**64 - 1, 0, 3), b"\0" * 4, 50), Renew(1, 50)]
NOTICES = [Faulted((1, 3), ((4096, 8),)), Release(2**64 - 1)]


@pytest.fixture
def heard():
    return []


@pytest.fixture
def inbox(heard):
    def handler(link, message):
        heard.append((link, message))
        return b"answer"

    return Inbox(
        {type(message): handler for message in REQUESTS},
        {type(message): handler for message in NOTICES},
    )


@pytest.mark.parametrize("message", REQUESTS)
def test_a_request_reaches_its_handler(inbox, heard, message):
    assert inbox.on_request(LINK, encode(message)) == b"answer"
    assert heard == [(LINK, message)]
    with pytest.raises(ProtocolError, match=f"{type(message).__name__} was sent the wrong way"):
        inbox.on_notify(LINK, encode(message))


@pytest.mark.parametrize("message", NOTICES)
def test_a_notice_reaches_its_handler(inbox, heard, message):
    inbox.on_notify(LINK, encode(message))
    assert heard == [(LINK, message)]
    with pytest.raises(ProtocolError, match=f"{type(message).__name__} was sent the wrong way"):
        inbox.on_request(LINK, encode(message))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"x" * 100,
        msgspec.msgpack.encode(["no such message", 1]),
        msgspec.msgpack.encode(["lend", 1]),
        msgspec.msgpack.encode(["lend", "1", [1], None, 5]),
        msgspec.msgpack.encode(["release", None]),
        encode(Granted()),
    ],
)
def test_anything_else_breaks_the_protocol(inbox, heard, body):
    with pytest.raises(ProtocolError, match="malformed message"):
        inbox.on_request(LINK, body)
    assert heard == []


def test_answers():
    for answer in (Granted(), Refused(5, "problem", "remedy")):
        assert decode_answer(encode(answer)) == answer


def test_a_later_version_may_append_fields(inbox, heard):
    """What a peer of a later version adds is passed over."""
    inbox.on_request(LINK, msgspec.msgpack.encode(["renew", 1, 50, "more"]))
    assert heard == [(LINK, Renew(1, 50))]
