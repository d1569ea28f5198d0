"""Texts of others: one line, nothing that a terminal obeys, not too long, wherever they come in."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_datadist._backends.base import Unavailable
from llm_datadist._engine.link import messages as engine_messages
from llm_datadist._protocol import codec, messages
from llm_datadist._protocol.codec import DECODE_ERRORS, ProtocolError
from llm_datadist._protocol.texts import MAX_SHOWN, shown
from llm_datadist._registry.records import CorruptDirectory

HOSTILE = [
    "x\nWARNING all is well",
    "\x1b[2J\x1b]0;title\x07",
    "\r\x00\x7f\x9b31m",
    "\u202egnp.exe",
    "\u2028\u2029",
    "x" * 4096,
    "\n" * 4096,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_gets_through(text):
    assert shown(text).isprintable()
    assert len(shown(text)) <= MAX_SHOWN
    assert len(shown(text, 40)) <= 40


def test_what_can_be_read_stays():
    assert shown("cluster 7: größer 3; \\n") == "cluster 7: größer 3; \\n"
    assert shown("a\nb\x1b\u2028\ud800") == "a\\nb\\x1b\\u2028\\ud800"
    assert shown("x" * 5000).endswith("x... (5000 characters)")


@given(st.text(st.characters(), max_size=50), st.integers(40, 60))
def test_what_was_shown_stays_as_it_is(text, limit):
    once = shown(text, limit)
    assert once.isprintable()
    assert shown(once, limit) == once


@pytest.mark.parametrize("error", [ProtocolError, CorruptDirectory, Unavailable])
def test_exceptions_that_may_quote_a_peer_are_shown(error):
    assert str(error("a\nb")) == "a\\nb"


def texts(value):
    """Yield every text in a message."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from texts(getattr(value, name))
    elif isinstance(value, tuple | list):
        for each in value:
            yield from texts(each)


FILL = {
    "nonce": bytes(32),
    "session": bytes(16),
    "endpoint": b"",
    "body": b"",
    "version": 1,
    "cluster_id": 1,
    "incarnation": 1,
    "num_lanes": 1,
    "status": 5,
    "id": 1,
}


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("kind", messages.Message.__subclasses__(), ids=lambda kind: kind.__name__)
def test_every_text_of_every_message_can_be_printed(kind, text):
    """Refused, or shown. The one exception are names of domains, which are printed with repr."""
    names = kind.__struct_fields__
    for name in names:
        for value in (text, [text, 1]):
            body = msgspec.msgpack.encode(
                {"type": kind.__name__.lower()}
                | {each: FILL[each] for each in names if each in FILL}
                | {name: value}
            )
            try:
                message = codec.decode_message(body)
            except ProtocolError as error:
                assert str(error).isprintable()
                continue
            assert all(each.isprintable() for each in texts(message)), message


@pytest.mark.parametrize("text", HOSTILE[:4])
def test_refusals_of_leases_can_be_printed(text):
    body = msgspec.msgpack.encode(["refused", 5, text, text])
    try:
        answer = engine_messages.decode_answer(body)
    except DECODE_ERRORS:
        return
    assert all(each.isprintable() for each in texts(answer))
