"""Which layers a worker holds, from their names; in doubt, it is not known."""

from __future__ import annotations

import pytest

from llm_datadist.integrations.vllm.stages import (
    name_pattern,
    numbered_layers,
    overlapping,
    span_text,
)


def names(*numbers, of="model.layers.{}.self_attn.attn"):
    return [of.format(number) for number in numbers]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([names(0, 1, 2)], range(3)),
        ([names(5, 6)], range(5, 7)),
        ([names(7)], range(7, 8)),
        ([names(5, 6), names(5, 6, of="model.layers.{}.indexer.k_cache")], range(5, 7)),
        ([names(5, 6), names(6, 7)], None),
        ([names(0, 2, 4)], None),
        ([names(1, 0)], None),
        ([names(1, 1)], None),
        ([["layer0", "layer1"]], None),
        ([names(0, 1, of="model.layers.{}.block.0.attn")], None),
        ([names("1" * 30)], None),
        ([[]], None),
        ([], None),
    ],
)
def test_layers_from_names(parts, expected):
    assert numbered_layers(parts) == expected


def test_texts():
    assert name_pattern("model.layers.12.self_attn.attn") == "model.layers.#.self_attn.attn"
    assert span_text(range(3, 9)) == "3 to 8"
    assert span_text(None) == "unknown"


@pytest.mark.parametrize(
    ("layers", "stages", "expected"),
    [
        (range(6), [range(3), range(3, 6)], [0, 1]),
        (range(3), [range(3), range(3, 6)], [0]),
        (range(3, 6), [range(3), range(3, 6)], [1]),
        (range(2, 4), [range(2), range(2, 4), range(4, 6)], [1]),
        (range(2, 4), [range(3), range(3, 6)], [0, 1]),
        (range(8, 9), [range(3)], []),
        (None, [None, None, None], [2]),
        (range(6), [None], [2]),
        (None, [range(3), range(3, 6)], [2]),
    ],
)
def test_stages_that_hold_the_same_layers(layers, stages, expected):
    assert overlapping(layers, stages, 2) == expected
