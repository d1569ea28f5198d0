"""Proofs of lanes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_datadist._protocol import lane_auth
from llm_datadist._protocol.codec import ProtocolError
from llm_datadist._protocol.handshake import Side
from llm_datadist._protocol.lane_auth import LaneHello

KEY = b"k" * 32
hellos = st.builds(
    LaneHello,
    session=st.binary(min_size=16, max_size=16),
    server=st.sampled_from(Side),
    index=st.integers(0, 63),
    nonce=st.binary(min_size=16, max_size=16),
)
HELLO = LaneHello(b"s" * 16, Side.DIALER, 3, b"n" * 16)


@given(hellos)
def test_a_hello_comes_back_as_it_went(hello):
    data = hello.pack()
    assert len(data) == lane_auth.LANE_HELLO_BYTES
    assert LaneHello.unpack(data) == hello


@given(st.binary(max_size=50) | st.binary(min_size=36, max_size=36))
def test_any_bytes_are_a_hello_or_a_protocol_error(data):
    try:
        hello = LaneHello.unpack(data)
    except ProtocolError:
        return
    assert hello.pack() == data


def test_both_ends_prove_the_key():
    answer = lane_auth.answer_lane(KEY, HELLO, 1000)
    assert len(answer) == lane_auth.LANE_ANSWER_BYTES
    assert lane_auth.check_answer(KEY, HELLO, answer) == 1000
    proof = lane_auth.prove_lane(KEY, HELLO, answer, 2000)
    assert len(proof) == lane_auth.LANE_PROOF_BYTES
    assert lane_auth.check_proof(KEY, HELLO, answer, proof) == 2000


def test_a_recorded_proof_fails_on_another_connection():
    answer = lane_auth.answer_lane(KEY, HELLO, 1000)
    proof = lane_auth.prove_lane(KEY, HELLO, answer, 2000)
    with pytest.raises(ProtocolError):
        lane_auth.check_proof(KEY, HELLO, lane_auth.answer_lane(KEY, HELLO, 1000), proof)
    with pytest.raises(ProtocolError):
        lane_auth.check_answer(KEY, replace(HELLO, nonce=b"m" * 16), answer)


@pytest.mark.parametrize("other", [{"server": Side.ACCEPTOR}, {"index": 4}, {"session": b"t" * 16}])
def test_a_proof_is_for_one_place_only(other):
    answer = lane_auth.answer_lane(KEY, HELLO, 1000)
    proof = lane_auth.prove_lane(KEY, HELLO, answer, 2000)
    with pytest.raises(ProtocolError):
        lane_auth.check_proof(KEY, replace(HELLO, **other), answer, proof)
    with pytest.raises(ProtocolError):
        lane_auth.check_answer(KEY, replace(HELLO, **other), answer)


def test_another_key_and_the_other_ends_proof_fail():
    answer = lane_auth.answer_lane(KEY, HELLO, 1000)
    with pytest.raises(ProtocolError):
        lane_auth.check_answer(b"x" * 32, HELLO, answer)
    with pytest.raises(ProtocolError):
        lane_auth.check_proof(KEY, HELLO, answer, answer[16:])
    with pytest.raises(ProtocolError):
        lane_auth.check_proof(
            b"x" * 32, HELLO, answer, lane_auth.prove_lane(KEY, HELLO, answer, 2000)
        )


def test_a_proof_covers_the_clock():
    answer = lane_auth.answer_lane(KEY, HELLO, 1000)
    proof = lane_auth.prove_lane(KEY, HELLO, answer, 1000)
    other = answer[:16] + (1001).to_bytes(8, "little") + answer[24:]
    with pytest.raises(ProtocolError, match="proof is wrong"):
        lane_auth.check_answer(KEY, HELLO, other)
    with pytest.raises(ProtocolError, match="proof is wrong"):
        lane_auth.check_proof(KEY, HELLO, answer, (1001).to_bytes(8, "little") + proof[8:])
    odd = lane_auth.answer_lane(KEY, HELLO, 2**63)
    with pytest.raises(ProtocolError, match="clock of 9223372036854775808 ns"):
        lane_auth.check_answer(KEY, HELLO, odd)


def test_the_ends_have_the_keys_of_each_others_tags_and_no_other_lane_has_them():
    answer = lane_auth.answer_lane(KEY, HELLO, 1000)
    dialer = lane_auth.lane_keys(KEY, HELLO, answer, Side.DIALER)
    acceptor = lane_auth.lane_keys(KEY, HELLO, answer, Side.ACCEPTOR)
    assert (dialer.send, dialer.receive) == (acceptor.receive, acceptor.send)
    keys = {*dialer}
    for other in (
        (b"x" * 32, HELLO, answer),
        (KEY, replace(HELLO, nonce=b"m" * 16), answer),
        (KEY, replace(HELLO, server=Side.ACCEPTOR), answer),
        (KEY, replace(HELLO, index=4), answer),
        (KEY, HELLO, lane_auth.answer_lane(KEY, HELLO, 1000)),
    ):
        keys |= {*lane_auth.lane_keys(*other, Side.DIALER)}
    assert len(keys) == 12
    assert {len(key) for key in keys} == {16}
