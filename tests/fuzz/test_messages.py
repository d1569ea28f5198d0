"""Whatever bytes a peer sends, Python code parses them or says that they break the protocol.

Inputs are made by hypothesis, and by damaging the files of tests/fuzz/corpus/messages/<decoder>,
where what was found is kept, too. The long form (`LDD_LONG=1`, `make fuzz-messages`) damages them a
million times for each decoder.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llm_datadist._backends.base import Unavailable
from llm_datadist._backends.host import HostBackend, HostMetadata
from llm_datadist._backends.transfer import PeerEndpoint
from llm_datadist._engine.link.delegate import Endpoint
from llm_datadist._engine.link.messages import Granted, Inbox, Refused, decode_answer
from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._protocol import codec, handshake, lane_auth, messages
from llm_datadist._protocol.codec import ProtocolError
from llm_datadist._protocol.handshake import Handshake, Side
from llm_datadist._protocol.rank_table import parse_rank_table
from llm_datadist._registry.reader import DirectoryReader
from llm_datadist._registry.records import CorruptDirectory

LONG = bool(os.environ.get("LDD_LONG"))
CORPUS = Path(__file__).with_name("corpus") / "messages"
KEY = bytes(range(32))
U64 = 2**64 - 1

DAMAGED = 1_000_000 if LONG else 1000  # inputs for each decoder
many = settings(
    max_examples=3000 if LONG else 30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600 if LONG else 120)]

uint64 = st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63, U64]) | st.integers(0, U64)
any_int = uint64 | st.integers(-(2**63), -1)
plain = st.recursive(
    st.none()
    | st.booleans()
    | any_int
    | st.floats()
    | st.binary(max_size=20)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)


def packed(value):
    return msgspec.msgpack.encode(value)


#: Bytes, or a well-formed value, with some places changed.
def damaged(values):
    @st.composite
    def build(draw):
        data = bytearray(packed(draw(values)))
        for _ in range(draw(st.integers(0, 3))):
            if data:
                data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
        return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)

    return build() | st.binary(max_size=200)


# ---- the handshake and the lanes ----

hello = st.fixed_dictionaries(
    {"type": st.just("hello"), "version": any_int, "cluster_id": any_int, "incarnation": any_int},
    optional={"nonce": st.just(bytes(32)), "listen": plain, "domain": plain, "num_lanes": any_int},
)
tagged = st.builds(
    lambda tag, fields: {"type": tag, **fields},
    st.sampled_from([str.lower(kind.__name__) for kind in messages.Message.__subclasses__()]),
    st.dictionaries(
        st.sampled_from(["id", "body", "mac", "nonce", "endpoint", "session", "status", "reason"]),
        plain,
    ),
)


def decode_message(data):
    assert isinstance(codec.decode_message(data), messages.Message)


def decode_frame(data):
    length = codec.decode_header(data[: codec.HEADER_BYTES], codec.MAX_GREETING_BYTES)
    decode_message(data[codec.HEADER_BYTES :][:length])


def lane_hello(data):
    assert lane_auth.LaneHello.unpack(data).pack() == data


def lane_proofs(data):
    """No bytes prove a key that their author does not have."""
    said = lane_auth.LaneHello(bytes(16), Side.ACCEPTOR, 0, bytes(16))
    with pytest.raises(ProtocolError):
        lane_auth.check_answer(KEY, said, data)
    with pytest.raises(ProtocolError):
        lane_auth.check_proof(KEY, said, data[:48].ljust(48), data[48:])


# ---- what links and backends say about memory ----


def endpoint(data):
    told = msgspec.msgpack.decode(data, type=Endpoint)
    index, value = told.link_ref
    assert 0 <= index <= U64 and 0 <= value <= U64  # noqa: PT018
    assert all(isinstance(each, bytes) for each in told.backends.values())


def engine_message(data):
    """To an engine that serves nothing: what can be read is refused as well."""
    with pytest.raises(ProtocolError):
        Inbox({}, {}).on_request(None, data)
    answer = decode_answer(data)
    assert isinstance(answer, Granted | Refused)


def host_metadata(data):
    """Nothing but Unavailable, before anything native is asked."""
    peer = PeerEndpoint(1, 2, (1, 1), bytes(16), {"host": data})
    backend = HostBackend.__new__(HostBackend)  # of no node: decoding comes first
    try:
        remote = msgspec.msgpack.decode(data, type=HostMetadata)
    except codec.DECODE_ERRORS:
        with pytest.raises(Unavailable, match="cannot be read"):
            backend.connect(peer, None)
        return
    assert 0 < remote.pid < 2**31
    assert all(0 <= each.fd < 2**31 for each in remote.segments)


class Log:
    """A peer's published log, of one era."""

    def __init__(self, data):
        self._data = data

    def version(self, deadline_ns):
        return 2 << 40 | len(self._data)

    def read_log(self, offset, size, deadline_ns):
        return self._data[offset : offset + size]


def directory(data):
    reader = DirectoryReader(Log(data), 1)
    reader.refresh("test", 1 << 62)
    for cache in reader.caches():
        assert all(0 <= word <= U64 for word in cache.ref)
        cache.check()
        assert all(0 <= int(addr) <= U64 for addr in cache.layout.addrs)


added = st.tuples(
    st.just(1),
    uint64,
    st.tuples(any_int, any_int),
    st.booleans(),
    st.integers(-1, 3),
    st.lists(st.sampled_from([1, 4, 2**31, 2**62, -1, 0]), max_size=4),
    st.sampled_from([0, 1, 4, 13, 27, 99]),
    st.integers(-1, 2),
    st.integers(-1, 3),
    st.binary(max_size=24).filter(lambda data: len(data) % 8 == 0) | st.binary(max_size=9),
    st.booleans(),
    st.booleans(),
    st.none() | any_int,
    st.lists(st.tuples(uint64, uint64, uint64, any_int, st.tuples(any_int, any_int)), max_size=2),
    st.booleans(),
    st.binary(max_size=9),
)
record = added | st.tuples(
    st.integers(2, 5), st.integers(0, 3), st.tuples(any_int, any_int) | any_int
)


@st.composite
def logs(draw):
    data = b""
    for body in draw(st.lists(damaged(record), max_size=4)):
        length = len(body) if draw(st.integers(0, 9)) else draw(st.integers(0, 2**32 - 1))
        data += length.to_bytes(4, "little") + body
    return data


def rank_table(data):
    try:
        parse_rank_table(data.decode("utf-8", "surrogatepass"))
    except UnicodeDecodeError:
        return
    except LLMException as error:
        assert error.status_code is LLMStatusCode.LLM_PARAM_INVALID


table = st.recursive(
    plain | st.sampled_from(["1.0", "127.0.0.1", "::1", "7", "99999", "a..b", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["version", "server_list", "server_id", "host_ip", "device", "device_id", "rank_id"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=10,
)
tables = st.builds(
    lambda value: json.dumps(value, default=repr, ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    ),
    table,
)


#: Decoder -> inputs for it, and what it may raise.
DECODERS = {
    decode_message: (damaged(hello | tagged), ProtocolError),
    decode_frame: (damaged(hello).map(lambda b: len(b).to_bytes(4, "little") + b), ProtocolError),
    lane_hello: (st.binary(max_size=60) | st.binary(min_size=36, max_size=36), ProtocolError),
    lane_proofs: (st.binary(max_size=120), ()),
    endpoint: (
        damaged(
            st.tuples(
                st.tuples(any_int, any_int),
                st.dictionaries(st.text(), plain | st.binary(max_size=9)),
                st.lists(st.text(max_size=3), max_size=2) | plain,
                st.lists(st.tuples(st.just("marked"), plain, plain), max_size=2) | plain,
                st.booleans() | plain,
            )
        ),
        codec.DECODE_ERRORS,
    ),
    engine_message: (
        damaged(
            st.tuples(
                st.sampled_from(["remapped", "lend", "renew", "granted", "refused", "faulted"]),
                plain,
                plain,
            )
        ),
        codec.DECODE_ERRORS,
    ),
    host_metadata: (
        damaged(
            st.tuples(
                st.text(max_size=4),
                st.text(max_size=4),
                any_int,
                any_int,
                any_int,
                any_int,
                st.lists(st.tuples(any_int, any_int, any_int, st.tuples(any_int, any_int))),
            )
        ),
        (),
    ),
    directory: (logs(), CorruptDirectory),
    rank_table: (tables | st.binary(max_size=200), ()),
}
NESTED = b"\x91" * 60_000


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.__name__)
def test_any_bytes_parse_or_break_the_protocol(decoder):
    inputs, allowed = DECODERS[decoder]

    @many
    @given(inputs)
    @example(b"")
    @example(NESTED)
    @example(b"\x92\x92\x00\x01\x81\xa1\xff\xc4\x00")  # no UTF-8
    def run(data):
        with contextlib.suppress(allowed):
            decoder(data)

    run()


def damage(data, chance):
    """Change, drop, double or insert a few bytes, often by one of those that mean something."""
    data = bytearray(data)
    for _ in range(chance.randrange(4)):
        at = chance.randrange(len(data) + 1)
        other = chance.choice((0, 0x7F, 0xC0, 0xCF, 0xD3, 0xDD, 0xDF, 0xFF, chance.randrange(256)))
        size = chance.choice((0, 1, 1, 1, 4, len(data)))
        data[at : at + size] = chance.choice((bytes([other]), data[at : at + 8] * 2, b"", data[:9]))
    return bytes(data)


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.__name__)
def test_a_file_of_the_corpus_is_taken(decoder):
    """Otherwise the form has changed, and all that is made of them is refused at its beginning."""
    taken = []
    for path in (CORPUS / decoder.__name__).iterdir():
        with contextlib.suppress(DECODERS[decoder][1]):
            decoder(path.read_bytes())
            taken.append(path.name)
    assert taken


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.__name__)
def test_what_was_found_stays_found(decoder):
    """The files of the corpus, as they are and damaged."""
    allowed = DECODERS[decoder][1]
    files = [path.read_bytes() for path in sorted((CORPUS / decoder.__name__).iterdir())]
    chance = random.Random(os.environ.get("LDD_SEED", "1"))
    made = (damage(chance.choice(files), chance) for _ in range(DAMAGED))
    for data in itertools.chain(files, made):
        try:
            decoder(data)
        except allowed:
            pass
        except BaseException:
            print(f"found by {decoder.__name__}: {data!r}")
            raise


@many
@given(st.lists(st.tuples(st.booleans(), st.sampled_from(messages.Message.__subclasses__()))))
def test_any_order_of_messages_follows_the_table_or_breaks_the_protocol(steps):
    """Any message at any time: one end's state never goes wrong in another way."""
    shake = Handshake(Side.ACCEPTOR, KEY)
    fill = {"nonce": bytes(32), "session": bytes(16), "reason": "", "num_lanes": 1}
    for own, kind in steps:
        required = [field.name for field in msgspec.structs.fields(kind) if field.required]
        value = {
            name: fill.get(name, b"" if name in ("endpoint", "body") else 1) for name in required
        }
        phase = shake.phase
        try:
            (shake.sent if own else shake.received)(kind(**value))
        except ProtocolError:
            assert shake.phase in (phase, handshake.Phase.OVER)
            continue
        assert (phase, kind) in handshake.TRANSITIONS
        # Without the secret no peer gets past its proof.
        assert own or kind is not messages.Confirm
