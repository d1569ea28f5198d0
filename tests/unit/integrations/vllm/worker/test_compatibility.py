"""The compatibility check: what counts, and that a mismatch shows both values."""

from __future__ import annotations

import pytest

from llm_datadist.integrations.vllm.kv_layout import KVLayout, Part
from llm_datadist.integrations.vllm.worker.compatibility import (
    FACTS_BYTES,
    facts_of,
    mismatches,
    read_facts,
    write_facts,
)
from support.vllm.objects import vllm_config


def layout(*, layers=("a", "b"), block_size=32, rank=0, addrs=(1, 2), num_blocks=10):
    part = Part(0, addrs, num_blocks, 128 * block_size, layers)
    return KVLayout((part,), (block_size,), "FullAttentionSpec", rank)


LAYOUT = layout()


def facts(layout=LAYOUT, model_id=None, version="0.32.0", **model):
    return facts_of(vllm_config(**model), layout, model_id, version)


def test_a_page_holds_the_facts():
    page = write_facts(facts())
    assert len(page) == FACTS_BYTES
    assert read_facts(page) == facts()


def test_equal_facts_fit_whatever_the_addresses_and_block_counts():
    assert mismatches(facts(), facts(layout(addrs=(7, 8), num_blocks=99))) == []
    assert mismatches(facts(), facts(found_at="/b")) == []


@pytest.mark.parametrize(
    ("remote", "text"),
    [
        ({"version": "0.33.0"}, "vLLM version: producer '0.33.0', consumer '0.32.0'"),
        ({"model": "other"}, "model: producer 'other', consumer 'm'"),
        ({"model_id": "named"}, "model: producer 'named', consumer 'm'"),
        ({"layers": 3}, "model configuration: producer 'digest"),
        ({"dtype": "bfloat16"}, "dtype: producer 'bfloat16', consumer 'float32'"),
        ({"layout": layout(block_size=64)}, "block size: producer '64', consumer '32'"),
        ({"layout": layout(layers=("a", "c"))}, "layers: producer"),
        ({"layout": layout(rank=1)}, "tensor parallel rank: producer '1', consumer '0'"),
    ],
)
def test_each_difference_is_named_with_both_values(remote, text):
    assert any(text in line for line in mismatches(facts(), facts(**remote)))


def test_a_fact_that_one_side_does_not_know():
    assert mismatches({"a": "1"}, {"b": "2"}) == [
        "a: producer 'unknown', consumer '1'",
        "b: producer '2', consumer 'unknown'",
    ]


def test_pages_that_hold_no_facts():
    for page in (b"\0" * FACTS_BYTES, b"[1]", b'{"a": 1}'):
        with pytest.raises(ValueError, match="cannot be read"):
            read_facts(page)
    with pytest.raises(ValueError, match="bytes"):
        write_facts({"a": "x" * FACTS_BYTES})
