"""Byte form of layouts: round trips, its size, and what is refused."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_datadist import DataType, LLMException, LLMStatusCode
from llm_datadist._plan.layouts import MAX_LAYOUT_BYTES
from llm_datadist.layouts import KvLayout, Strides, dense, from_bytes, from_json, to_bytes, to_json

LAYOUT = dense(
    "NHD", layers=range(2, 6), kv_heads=8, heads=range(4, 8), head_size=128,
    data_type=DataType.DT_BF16, block_tokens=16,
)  # fmt: skip
LARGEST = KvLayout(
    range(65535 - 4095, 65535), 1 << 16, range((1 << 16) - 1, 1 << 16), 1 << 32, DataType.DT_INT8,
    1 << 24, Strides(1 << 48, plane=1 << 40), 64, "opaque blocks", "x" * 64,
)  # fmt: skip


@pytest.mark.parametrize("layout", [LAYOUT, LARGEST])
def test_round_trip(layout):
    data = to_bytes(layout)
    assert from_bytes(data) == layout
    assert len(data) <= MAX_LAYOUT_BYTES // 2
    assert from_json(to_json(layout)) == layout
    json.loads(to_json(layout))


def fields():
    return msgspec.msgpack.decode(to_bytes(LAYOUT))


@pytest.mark.parametrize(
    ("place", "value", "text"),
    [
        (0, [6, 2], "layers"),
        (0, [0, 1 << 40], "<= 65536"),
        (1, 0, ">= 1"),
        (2, [4, 9], "kv_heads 8"),
        (3, 1 << 60, "<= 4294967296"),
        (4, 99, "DataType"),
        (4, 13, "no fixed element size"),
        (5, -1, ">= 1"),
        (6, [1, 0, 0, 0, 0], "strides"),
        (6, [1 << 60, 0, 0, 0, 0], "<= 281474976710656"),
        (6, [4096], "length"),
        (7, 1 << 20, "<= 64"),
        (8, 3, "<= 2"),
        (9, "x" * 65, "length <= 64"),
        (9, "x", "packing is 'x'"),
        (9, 5, "Expected `str`"),
    ],
)
def test_values_of_a_hostile_peer_are_refused(place, value, text):
    values = fields()
    values[place] = value
    with pytest.raises(LLMException, match=text) as caught:
        from_bytes(msgspec.msgpack.encode(values))
    assert caught.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
    with pytest.raises(LLMException, match=text):
        from_json(json.dumps(values))


def test_what_is_no_layout_is_refused():
    with pytest.raises(LLMException, match="513 bytes; 512 are the most"):
        from_bytes(bytes(MAX_LAYOUT_BYTES + 1))
    with pytest.raises(LLMException, match="2049 characters"):
        from_json(" " * 2049)
    with pytest.raises(TypeError):
        from_bytes("x")
    with pytest.raises(TypeError):
        to_bytes(None)


@given(st.binary(max_size=64) | st.binary(max_size=16).map(lambda end: to_bytes(LAYOUT)[:-8] + end))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_layout_or_refused(data):
    try:
        layout = from_bytes(data)
    except LLMException as error:
        assert error.status_code is LLMStatusCode.LLM_PARAM_INVALID
    else:
        assert from_bytes(to_bytes(layout)) == layout
