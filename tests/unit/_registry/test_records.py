from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_datadist._registry.records import (
    Added,
    CorruptDirectory,
    KeyRecord,
    KeyRemoved,
    Remapped,
    Removed,
    Unnamed,
    decode_frames,
    encode_frame,
)

U64 = st.integers(0, 2**64 - 1)
REFS = st.tuples(U64, U64)
KEYS = st.builds(KeyRecord, U64, U64, U64, st.integers(0, 2**32 - 1), REFS)
RECORDS = st.one_of(
    st.builds(
        Added, U64, REFS, st.booleans(), st.integers(1, 2**32 - 1), st.tuples(U64, U64),
        st.integers(0, 27), st.integers(0, 1), st.integers(0, 3), st.binary(), st.booleans(),
        st.booleans(), st.none() | U64, st.tuples(KEYS, KEYS),
    ),
    st.builds(Removed, U64, st.integers(0, 255)),
    st.builds(KeyRemoved, U64, REFS, st.integers(0, 255)),
    st.builds(Unnamed, U64),
    st.builds(Remapped, U64, U64),
)  # fmt: skip


@given(st.lists(RECORDS, max_size=4))
def test_frames_are_read_as_written(records):
    log = b"".join(map(encode_frame, records))
    assert list(decode_frames(log)) == records


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(log):
    with contextlib.suppress(CorruptDirectory):
        list(decode_frames(log))


@given(RECORDS, st.data())
def test_a_log_that_is_cut_is_refused(record, data):
    log = encode_frame(record)
    cut = data.draw(st.integers(1, len(log) - 1))
    with pytest.raises(CorruptDirectory):
        list(decode_frames(log[:cut]))
