"""The codec: round trips, and that no bytes raise anything but ProtocolError."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm_datadist._protocol import codec, messages
from llm_datadist._protocol.codec import Kind, ProtocolError

uint64 = st.integers(0, 2**64 - 1)
nonce = st.binary(min_size=32, max_size=32)
mac = st.binary(max_size=32)
text = st.text(max_size=50)
domain = st.builds(
    messages.DomainHello,
    name=st.text(min_size=1, max_size=20),
    ranks=st.dictionaries(uint64, uint64, max_size=4),
    rank=uint64,
)
host = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20)
any_message = st.one_of(
    st.builds(
        messages.Hello,
        version=uint64,
        cluster_id=uint64,
        incarnation=uint64,
        nonce=nonce,
        expected_cluster_id=st.none() | uint64,
        has_secret=st.booleans(),
        listen=st.none() | st.tuples(host, st.integers(0, 65535)),
        num_lanes=st.integers(1, 64),
        domain=st.none() | domain,
        encrypt_lanes=st.just(msgspec.UNSET) | st.booleans(),
    ),
    st.builds(messages.Welcome, cluster_id=uint64, incarnation=uint64, nonce=nonce, mac=mac),
    st.builds(messages.Confirm, endpoint=st.binary(max_size=100), mac=mac),
    st.builds(
        messages.Accept,
        session=st.binary(min_size=16, max_size=16),
        num_lanes=st.integers(1, 64),
        endpoint=st.binary(max_size=100),
        mac=mac,
        encrypt_lanes=st.just(msgspec.UNSET) | st.booleans(),
    ),
    st.builds(messages.Reject, status=st.integers(-1, 2**32 - 1), reason=text),
    st.builds(messages.Request, id=uint64, body=st.binary(max_size=100)),
    st.builds(messages.Reply, id=uint64, body=st.binary(max_size=100), error=st.none() | text),
    st.builds(messages.Notify, body=st.binary(max_size=100)),
    st.builds(messages.Ping, id=uint64),
    st.builds(messages.Pong, id=uint64),
    st.builds(messages.Unlink, reason=text),
    st.builds(messages.Join, id=uint64, domain=domain),
    st.builds(messages.Joined, id=uint64, status=st.integers(-1, 2**32 - 1), reason=text),
    st.builds(
        messages.Leave,
        name=st.text(min_size=1, max_size=20),
        token=uint64,
        complete=st.booleans(),
        reason=text,
    ),
    st.sampled_from(
        [
            messages.Existing(),
            messages.Yield(),
            messages.Complete(),
            messages.Ready(),
            messages.Unlinked(),
        ]
    ),
)


@given(any_message)
def test_a_message_comes_back_as_it_went(message):
    frame = codec.encode_frame(message)
    header, body = frame[: codec.HEADER_BYTES], frame[codec.HEADER_BYTES :]
    assert codec.decode_header(header) == len(body)
    assert codec.decode_message(body) == message


def test_every_message_is_known_to_the_codec():
    kinds = {
        kind
        for kind in vars(messages).values()
        if isinstance(kind, type) and issubclass(kind, messages.Message)
    } - {messages.Message}
    assert {
        type(codec.decode_message(codec.encode_message(_smallest(kind)))) for kind in kinds
    } == (kinds)


def _smallest(kind):
    fill = {
        "nonce": bytes(32),
        "session": bytes(16),
        "endpoint": b"",
        "body": b"",
        "reason": "",
        "num_lanes": 1,
        "name": "x",
        "complete": True,
        "domain": messages.DomainHello(name="x", ranks={}, rank=0),
    }
    required = [field.name for field in msgspec.structs.fields(kind) if field.required]
    return kind(**{name: fill.get(name, 0) for name in required})


@given(st.binary(max_size=300))
@example(b"\x82\xa4type\xa4ping\xa2id\xd6\xff\x00\x00\x00\x00")  # a timestamp
@example(b"\x82\xa4type\xa4ping\xa1q" + b"\x91" * 60_000)  # nested beyond any stack
@example(b"\x82\xa4type\xa6unlink\xa6reason\xa1\xff")  # not UTF-8
@example(b"\xdf\xff\xff\xff\xff")  # a map of 2**32 entries
@example(b"\x82\xa4type\xa5hello\xa6listen\xdd\xff\xff\xff\xff")
@example(b"\x82\xa4type\xa4ping\xa2id\xff")  # negative
@example(b"\x81\xa4type\xa4nope")
@example(b"")
def test_any_body_parses_or_is_a_protocol_error(body):
    try:
        message = codec.decode_message(body)
    except ProtocolError:
        return
    assert isinstance(message, messages.Message)


@given(any_message, st.data())
def test_a_damaged_message_parses_or_is_a_protocol_error(message, data):
    body = bytearray(codec.encode_message(message))
    place = data.draw(st.integers(0, len(body) - 1))
    body[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolError):
        assert isinstance(codec.decode_message(bytes(body)), messages.Message)


@given(st.binary(max_size=8))
def test_any_bytes_are_a_header_or_a_protocol_error(data):
    with contextlib.suppress(ProtocolError):
        assert 0 < codec.decode_header(data) <= codec.MAX_FRAME_BYTES


@given(st.binary(max_size=12))
def test_any_bytes_are_a_preamble_or_a_protocol_error(data):
    try:
        kind = codec.decode_preamble(data)
    except ProtocolError:
        return
    assert codec.encode_preamble(kind) == data


@pytest.mark.parametrize("kind", Kind)
def test_preamble_round_trip(kind):
    assert codec.decode_preamble(codec.encode_preamble(kind)) is kind


@pytest.mark.parametrize("length", [0, codec.MAX_GREETING_BYTES + 1, 2**32 - 1])
def test_a_frame_outside_the_cap_is_refused_by_its_header(length):
    header = length.to_bytes(4, "little")
    with pytest.raises(ProtocolError, match=str(length)):
        codec.decode_header(header, codec.MAX_GREETING_BYTES)


def test_a_message_that_is_too_large_is_refused_when_it_is_sent():
    with pytest.raises(ValueError, match="Notify of"):
        codec.encode_frame(messages.Notify(body=bytes(codec.MAX_FRAME_BYTES)))
    codec.encode_frame(messages.Notify(body=bytes(codec.MAX_FRAME_BYTES - 100)))


@pytest.mark.parametrize(
    "fields",
    [
        {"nonce": bytes(31)},
        {"cluster_id": -1},
        {"cluster_id": "1"},
        {"num_lanes": 0},
        {"num_lanes": 65},
        {"listen": ["h", 65536]},
        {"listen": ["h" * 300, 1]},
        {"listen": ["h"]},
        {"listen": ["h\n", 1]},
        {"listen": ["\x1b[2J", 1]},
        {"domain": {"name": "", "ranks": {}, "rank": 0}},
        {"domain": {"name": "n", "ranks": {i: i for i in range(17)}, "rank": 0}},
    ],
)
def test_fields_outside_their_caps_are_refused(fields):
    hello = {"type": "hello", "version": 1, "cluster_id": 1, "incarnation": 1, "nonce": bytes(32)}
    codec.decode_message(msgspec.msgpack.encode(hello))
    with pytest.raises(ProtocolError):
        codec.decode_message(msgspec.msgpack.encode(hello | fields))


def test_fields_of_a_later_version_are_ignored():
    body = msgspec.msgpack.encode({"type": "ping", "id": 3, "color": {"deep": [1, 2]}})
    assert codec.decode_message(body) == messages.Ping(id=3)
