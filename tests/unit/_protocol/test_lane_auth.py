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
    answer = lane_auth.answer_lane(KEY, HELLO)
    assert len(answer) == lane_auth.LANE_ANSWER_BYTES
    lane_auth.check_answer(KEY, HELLO, answer)
    proof = lane_auth.prove_lane(KEY, HELLO, answer)
    assert len(proof) == lane_auth.LANE_PROOF_BYTES
    lane_auth.check_proof(KEY, HELLO, answer, proof)


def test_a_recorded_proof_fails_on_another_connection():
    answer = lane_auth.answer_lane(KEY, HELLO)
    proof = lane_auth.prove_lane(KEY, HELLO, answer)
    with pytest.raises(ProtocolError):
        lane_auth.check_proof(KEY, HELLO, lane_auth.answer_lane(KEY, HELLO), proof)
    with pytest.raises(ProtocolError):
        lane_auth.check_answer(KEY, replace(HELLO, nonce=b"m" * 16), answer)


@pytest.mark.parametrize("other", [{"server": Side.ACCEPTOR}, {"index": 4}, {"session": b"t" * 16}])
def test_a_proof_is_for_one_place_only(other):
    answer = lane_auth.answer_lane(KEY, HELLO)
    proof = lane_auth.prove_lane(KEY, HELLO, answer)
    with pytest.raises(ProtocolError):
        lane_auth.check_proof(KEY, replace(HELLO, **other), answer, proof)
    with pytest.raises(ProtocolError):
        lane_auth.check_answer(KEY, replace(HELLO, **other), answer)


def test_another_key_and_the_other_ends_proof_fail():
    answer = lane_auth.answer_lane(KEY, HELLO)
    with pytest.raises(ProtocolError):
        lane_auth.check_answer(b"x" * 32, HELLO, answer)
    with pytest.raises(ProtocolError):
        lane_auth.check_proof(KEY, HELLO, answer, answer[16:])
    with pytest.raises(ProtocolError):
        lane_auth.check_proof(b"x" * 32, HELLO, answer, lane_auth.prove_lane(KEY, HELLO, answer))
