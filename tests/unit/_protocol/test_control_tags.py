"""Control messages after the Accept: only those of the peer, each once and in order."""

from __future__ import annotations

import pytest

from llm_datadist._protocol.codec import ProtocolError, encode_frame
from llm_datadist._protocol.control_tags import TAG_BYTES, ControlKeys, ControlTags
from llm_datadist._protocol.messages import Ping

FRAMES = [encode_frame(Ping(id=number)) for number in range(3)]


@pytest.fixture
def ends():
    keys = ControlKeys(bytes(range(32)), bytes(range(32, 64)))
    return ControlTags(keys), ControlTags(ControlKeys(keys.receive, keys.send))


def split(sent):
    return sent[:-TAG_BYTES], sent[-TAG_BYTES:]


def test_messages_in_order_and_in_both_directions(ends):
    for frame in FRAMES:
        for sender, receiver in (ends, ends[::-1]):
            sent, tag = split(sender.tagged(frame))
            assert sent == frame
            receiver.check(sent, tag)


@pytest.mark.parametrize("forgery", ["changed", "tag changed", "repeated", "left out", "sent back"])
def test_what_is_not_the_next_of_the_peer(ends, forgery):
    sender, receiver = ends
    first, second = sender.tagged(FRAMES[0]), sender.tagged(FRAMES[1])
    receiver.check(*split(first))
    frame, tag = split(second)
    if forgery == "changed":
        frame = frame[:-1] + bytes([frame[-1] ^ 1])
    elif forgery == "tag changed":
        tag = tag[:-1] + bytes([tag[-1] ^ 1])
    elif forgery == "repeated":
        frame, tag = split(first)
    elif forgery == "left out":
        frame, tag = split(sender.tagged(FRAMES[2]))
    else:
        receiver.tagged(FRAMES[0])
        frame, tag = split(receiver.tagged(frame))
    with pytest.raises(ProtocolError, match="wrong tag"):
        receiver.check(frame, tag)
