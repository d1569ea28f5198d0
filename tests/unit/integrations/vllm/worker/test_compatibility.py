"""The compatibility check: what counts, and that a mismatch shows both values."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from llm_datadist.integrations.vllm.kv_layout import KVLayout, Part
from llm_datadist.integrations.vllm.rank_layouts import RankLayouts
from llm_datadist.integrations.vllm.stages import EngineShape, Stage
from llm_datadist.integrations.vllm.worker.compatibility import (
    FACTS_BYTES,
    Expected,
    Share,
    facts_of,
    facts_of_rank,
    mismatches,
    read_facts,
    share_of,
    write_facts,
)
from support.vllm.objects import vllm_config


def layout(*, layers=("a", "b"), block_size=32, rank=0, addrs=(1, 2), num_blocks=10):
    part = Part(0, addrs, num_blocks, 128 * block_size, layers)
    return KVLayout((part,), (block_size,), "FullAttentionSpec", rank)


LAYOUT = layout()


def facts(
    layout=LAYOUT, model_id=None, version="0.32.0", backends="CPU_ATTN vec", heads="?", stage=None,
    **config,
):  # fmt: skip
    tp_size = config.get("tp_size", 1)
    sizes = tp_size, layout.rank, layout.block_sizes
    known = RankLayouts((), (), *sizes, backends, heads, stage or Stage())
    return facts_of(vllm_config(**config), layout, known, model_id, version)


def differences(remote, local=None):
    return mismatches(Expected(local or facts()), remote)


def test_a_page_holds_the_facts():
    page = write_facts(facts())
    assert len(page) == FACTS_BYTES
    assert read_facts(page) == facts()


def test_equal_facts_fit_whatever_the_addresses_and_block_counts():
    assert differences(facts(layout(addrs=(7, 8), num_blocks=99))) == []
    assert differences(facts(found_at="/b")) == []


@pytest.mark.parametrize(
    ("remote", "text"),
    [
        ({"version": "0.33.0"}, "vLLM version: producer '0.33.0', consumer '0.32.0'"),
        ({"model": "other"}, "model: producer 'other', consumer 'm'"),
        ({"model_id": "named"}, "model: producer 'named', consumer 'm'"),
        ({"layers": 3}, "model configuration: producer 'digest"),
        ({"dtype": "bfloat16"}, "dtype: producer 'bfloat16', consumer 'float32'"),
        ({"layout": layout(block_size=64)}, "block size: producer '64', consumer '32'"),
        ({"layout": layout(layers=("a", "c"))}, "layer names: producer"),
        ({"layout": layout(layers=("a", "b", "c"))}, "layers: producer '3', consumer '2'"),
        ({"stage": Stage(1, 2)}, "pipeline parallel rank: producer '1', consumer '0'"),
        ({"stage": Stage(0, 2)}, "pipeline parallel size: producer '2', consumer '1'"),
        ({"stage": Stage(0, 1, range(4))}, "layers: producer '0 to 3', consumer '2'"),
        ({"layout": layout(rank=1)}, "tensor parallel rank: producer '1', consumer '0'"),
        ({"tp_size": 2}, "tensor parallel size: producer '2', consumer '1'"),
        ({"backends": "CPU_ATTN amx"}, "attention backends: producer 'CPU_ATTN amx', consumer"),
        ({"heads": "8 KV heads"}, "KV heads: producer '8 KV heads', consumer '?'"),
    ],
)
def test_each_difference_is_named_with_both_values(remote, text):
    assert any(text in line for line in differences(facts(**remote)))


def test_a_fact_that_one_side_does_not_know():
    assert mismatches(Expected({"a": "1"}, "expected"), {"b": "2"}) == [
        "a: producer 'unknown', expected '1'",
        "b: producer '2', expected 'unknown'",
    ]


def test_what_the_worker_of_an_unequal_engine_has():
    """Everything but what depends on its rank and sizes."""
    parts = [SimpleNamespace(num_tensors=3, strides=SimpleNamespace(block=2048))]
    shape = EngineShape(2, (range(3), range(3, 6)))
    expected = facts_of_rank(facts(), LAYOUT, parts, shape, 3, [16])
    assert differences(expected) == [
        "block size: producer '16', consumer '32'",
        "layers: producer '3 to 5', consumer '2'",
        (
            "KV layout: producer 'group 0: 3 tensors, 2048 bytes a block', "
            "consumer 'group 0: 2 tensors, 4096 bytes a block'"
        ),
        "tensor parallel size: producer '2', consumer '1'",
        "tensor parallel rank: producer '1', consumer '0'",
        "pipeline parallel size: producer '2', consumer '1'",
        "pipeline parallel rank: producer '1', consumer '0'",
    ]
    assert share_of(expected) == Share(2, 1, range(3, 6))


def test_names_of_layers_count_without_their_numbers():
    """So that a worker of another stage can be told what its facts must be."""
    first, second = (
        facts(layout(layers=tuple(f"model.layers.{i}.attn" for i in layers)), stage=stage)
        for layers, stage in (
            (range(2), Stage(0, 2, range(2))),
            (range(2, 4), Stage(1, 2, range(2, 4))),
        )
    )
    assert differences(second, first) == [
        "layers: producer '2 to 3', consumer '0 to 1'",
        "pipeline parallel rank: producer '1', consumer '0'",
    ]


@pytest.mark.parametrize("text", ["", "two", None])
def test_facts_without_a_size(text):
    with pytest.raises(ValueError, match="invalid literal"):
        share_of({} if text is None else {"tensor parallel size": text})


@pytest.mark.parametrize("layers", ["", "7", "a to b", "1 to", "9" * 20 + " to 1"])
def test_facts_without_layers(layers):
    share = share_of({"tensor parallel size": "1", "tensor parallel rank": "0", "layers": layers})
    assert share.layers is None


def test_pages_that_hold_no_facts():
    for page in (b"\0" * FACTS_BYTES, b"[1]", b'{"a": 1}', b'{"a": "\xff"}'):
        with pytest.raises(ValueError, match="cannot be read"):
            read_facts(page)
    with pytest.raises(ValueError, match="bytes"):
        write_facts({"a": "x" * FACTS_BYTES})
