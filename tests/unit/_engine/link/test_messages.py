"""What engines say to each other: one decoder, each message to its handler, nothing else."""

import msgspec
import pytest

from llm_datadist._engine.link.messages import (
    MAX_ENDED,
    Ended,
    EndedTransfer,
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
from llm_datadist._protocol.messages import MAX_BODY_BYTES

LINK = object()
REQUESTS = [Remapped(((4096, 8),)), Lend(1, (2**64 - 1, 0, 3), b"\0" * 4, 50), Renew(1, 50)]
TRACED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
DONE = EndedTransfer("cmpl-1", TRACED, "pull_blocks", "tcp", 8192, 0, 5_000, 3_000)
NOTICES = [Faulted((1, 3), ((4096, 8),)), Release(2**64 - 1), Ended((DONE,))]


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


def hostile(**change):
    fields = {name: getattr(DONE, name) for name in DONE.__struct_fields__} | change
    return msgspec.msgpack.encode(["ended", [list(fields.values())]])


def test_the_notices_below_have_one_hostile_field(inbox, heard):
    inbox.on_notify(LINK, hostile())
    assert heard == [(LINK, NOTICES[-1])]


@pytest.mark.parametrize(
    "change",
    [
        {"request_id": ""},
        {"request_id": "x" * 129},
        {"request_id": "two\nlines"},
        {"request_id": "\x1b[2J"},
        {"traceparent": ""},
        {"traceparent": TRACED + "\n"},
        {"traceparent": TRACED.upper()},
        {"traceparent": "ff" + TRACED[2:]},
        {"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01"},
        {"traceparent": f"00-{'4' * 32}-{'0' * 16}-01"},
        {"traceparent": TRACED + "-more"},
        {"operation": "x" * 65},
        {"operation": "pull\nblocks"},
        {"path": "\x1b[2J"},
        {"num_bytes": -1},
        {"status": 2**32},
        {"duration_ns": -1},
        {"duration_ns": 2**63},
        {"age_ns": -1},
    ],
)
def test_a_hostile_notice_of_a_transfer_breaks_the_protocol(inbox, heard, change):
    with pytest.raises(ProtocolError, match="malformed message"):
        inbox.on_notify(LINK, hostile(**change))
    assert heard == []


def test_a_notice_has_a_limited_number_of_transfers(inbox):
    inbox.on_notify(LINK, encode(Ended((DONE,) * MAX_ENDED)))
    with pytest.raises(ProtocolError, match="malformed message"):
        inbox.on_notify(LINK, encode(Ended((DONE,) * (MAX_ENDED + 1))))


def test_the_largest_notice_fits_a_message():
    longest = EndedTransfer("\U0001f600" * 128, TRACED, "x" * 64, "x" * 64, *[2**62] * 4)
    assert len(encode(Ended((longest,) * MAX_ENDED))) < MAX_BODY_BYTES


def test_answers():
    for answer in (Granted(), Refused(5, "problem", "remedy")):
        assert decode_answer(encode(answer)) == answer


def test_a_later_version_may_append_fields(inbox, heard):
    """What a peer of a later version adds is passed over."""
    inbox.on_request(LINK, msgspec.msgpack.encode(["renew", 1, 50, "more"]))
    assert heard == [(LINK, Renew(1, 50))]
