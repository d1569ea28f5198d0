"""Which of a producer's workers each worker of a consumer loads from."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from llm_datadist import DataType
from llm_datadist.integrations.vllm.kv_layout import KVLayout, Part
from llm_datadist.integrations.vllm.kv_transfer_params import RankAddress
from llm_datadist.integrations.vllm.rank_layouts import RankLayouts
from llm_datadist.integrations.vllm.stages import ONE_STAGE, Stage
from llm_datadist.integrations.vllm.worker.compatibility import Expected
from llm_datadist.integrations.vllm.worker.producer_links import Incompatible
from llm_datadist.integrations.vllm.worker.sources import SourceFinder
from llm_datadist.layouts import dense, heads_of_rank

FACTS = {"model": "m"}


def sources(tp_size, rank, kv_heads=4, stage=ONE_STAGE):
    """Of one worker of a consumer."""
    layers = stage.layers or range(3)
    layout = dense(
        ("block", "head", "plane", "element"), layers=layers, kv_heads=kv_heads,
        heads=heads_of_rank(kv_heads, tp_size, rank), head_size=8, data_type=DataType.DT_FLOAT,
        block_tokens=32, interior="opaque heads", packing="CPU_ATTN vec",
    )  # fmt: skip
    index = stage.rank * tp_size + rank
    addrs = tuple(range(1, len(layers) + 1))
    memory = KVLayout((Part(0, addrs, 9, layout.strides.block, ("a",)),), (32,), "F", index)
    known = RankLayouts((layout,), (0,), tp_size, rank, (32,), "CPU_ATTN vec", "", stage)
    return SourceFinder(SimpleNamespace(layout=memory, rank_layouts=known, facts=FACTS))


def producer(num_ranks, block_size=32):
    ranks = [RankAddress("a", number, number) for number in range(num_ranks)]
    return ranks, [block_size]


def asked(producers, consumers, kv_heads=4):
    """Ranks that each worker of a consumer pulls from."""
    found = []
    for rank in range(consumers):
        pairs = sources(consumers, rank, kv_heads).find(*producer(producers))
        assert [address.cluster_id for address, _ in pairs] == [one.index for _, one in pairs]
        found.append([source.index for _, source in pairs])
    return found


@pytest.mark.parametrize(
    ("producers", "consumers", "expected"),
    [
        (2, 1, [[0, 1]]),
        (1, 2, [[0], [0]]),
        (2, 4, [[0], [0], [1], [1]]),
        (4, 2, [[0, 1], [2, 3]]),
        (2, 2, [[0], [1]]),
    ],
)
def test_who_asks_whom(producers, consumers, expected):
    assert asked(producers, consumers) == expected


@pytest.mark.parametrize("kv_heads", [1, 2, 4, 8])
@pytest.mark.parametrize("producers", [1, 2, 4, 8])
@pytest.mark.parametrize("consumers", [1, 2, 4, 8])
def test_sources_hold_all_heads_and_every_producer_knows_its_readers(
    producers, consumers, kv_heads
):
    readers = [0] * producers
    for rank, indices in enumerate(asked(producers, consumers, kv_heads)):
        held = {head for index in indices for head in heads_of_rank(kv_heads, producers, index)}
        assert held >= set(heads_of_rank(kv_heads, consumers, rank))
        for index in indices:
            readers[index] += 1
    assert readers == [max(1, consumers // producers)] * producers  # as Readers.number


def test_an_equal_producer_has_the_facts_of_this_worker_and_no_layouts():
    ((address, source),) = sources(2, 1).find(*producer(2))
    assert address.cluster_id == 1
    assert source.expected == Expected(FACTS)
    assert source.layouts == ()


def test_what_an_unequal_producer_must_be():
    first, second = (source for _, source in sources(1, 0).find(*producer(2)))
    assert [source.layouts[0].heads for source in (first, second)] == [range(2), range(2, 4)]
    assert second.expected.facts == {
        **FACTS,
        "block size": "32",
        "KV layout": "group 0: 3 tensors, 4096 bytes a block",
        "tensor parallel size": "2",
        "tensor parallel rank": "1",
        "pipeline parallel size": "1",
        "pipeline parallel rank": "0",
    }


def test_a_producer_that_cannot_be_used_is_named_with_both_values():
    with pytest.raises(Incompatible, match=r"block size 64, the consumer .* block size 32"):
        sources(1, 0).find(*producer(1, 64))


def staged(*borders, tp_size=1):
    """A producer whose stages end at these layers."""
    spans = itertools.pairwise((0, *borders))
    return [
        RankAddress("a", 1, 1, stage, span) for stage, span in enumerate(spans)
        for _ in range(tp_size)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "tp", "producer", "expected"),
    [
        (Stage(0, 1, range(6)), (1, 0), staged(3, 6), [0, 1]),
        (Stage(0, 1, range(6)), (2, 1), staged(2, 4, 6, tp_size=2), [1, 3, 5]),
        (Stage(0, 1, range(6)), (1, 0), staged(3, 6, tp_size=2), [0, 1, 2, 3]),
        (Stage(0, 2, range(3)), (1, 0), staged(6), [0]),
        (Stage(1, 2, range(3, 6)), (1, 0), staged(6), [0]),
        (Stage(0, 2, range(3)), (1, 0), staged(2, 4, 6), [0, 1]),
        (Stage(1, 2, range(3, 6)), (1, 0), staged(2, 4, 6), [1, 2]),
        (Stage(1, 2, range(3, 6)), (4, 3), staged(2, 6, tp_size=2), [3]),
        (Stage(1, 2, range(3, 6)), (2, 1), staged(2, 6, tp_size=2), [3]),
    ],
)
def test_which_stages_hold_the_layers_of_a_worker(stage, tp, producer, expected):
    found = sources(*tp, stage=stage).find(producer, [32])
    assert [source.index for _, source in found] == expected
    for address, source in found:
        assert source.layouts[0].layers == range(*address.layers)
        facts = source.expected.facts
        assert facts["layers"] == f"{address.layers[0]} to {address.layers[1] - 1}"
        assert facts["pipeline parallel rank"] == str(address.stage)
        assert facts["pipeline parallel size"] == str(producer[-1].stage + 1)
        assert f"{len(source.layouts[0].layers)} tensors" in facts["KV layout"]


def test_a_producer_with_the_same_stages_is_equal():
    found = sources(2, 1, stage=Stage(1, 2, range(4, 6)))
    ((_, source),) = found.find(staged(4, 6, tp_size=2), [32])
    assert (source.index, source.expected, source.layouts) == (3, Expected(FACTS), ())
    other = found.find(staged(3, 6, tp_size=2), [32])
    assert [source.index for _, source in other] == [3]
    assert other[0][1].layouts, "the same stages, divided elsewhere"


@pytest.mark.parametrize(
    ("stage", "producer", "text"),
    [
        (
            Stage(0, 1, range(6)),
            staged(5),
            "producer has the layers 0 to 4, this worker of the consumer 0 to 5; every worker",
        ),
        (Stage(1, 2, range(3, 6)), staged(2, 4), "layers 0 to 1, 2 to 3, this worker .* 3 to 5"),
        (
            Stage(0, 1, range(1, 6)),
            [RankAddress("a", 1, 1, 0, (2, 6))],
            "producer has the layers 2 to 5, this worker of the consumer 1 to 5",
        ),
        (
            Stage(0, 1, None),
            staged(3, 6),
            "pipeline parallel size 2, the consumer 1, and which worker holds which layers is not",
        ),
        (
            Stage(0, 1, range(6)),
            [RankAddress("a", 1, 1, stage) for stage in (0, 1)],
            "pipeline parallel size 2, the consumer 1, and which worker",
        ),
        (
            Stage(0, 1, range(6)),
            staged(4, 6)[::-1],
            "have the pipeline-parallel ranks 1, 0, not 0",
        ),
    ],
)
def test_stages_that_cannot_be_used_are_named_with_both_values(stage, producer, text):
    with pytest.raises(Incompatible, match=text):
        sources(1, 0, stage=stage).find(producer, [32])


def test_routers_that_change_offers_cost_no_memory():
    found = sources(1, 0)
    for number in range(100):
        found.find(*producer(4 * number + 4))
    assert len(found._found) <= 64
