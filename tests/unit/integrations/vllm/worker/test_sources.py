"""Which of a producer's workers each worker of a consumer loads from."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from llm_datadist import DataType
from llm_datadist.integrations.vllm.kv_layout import KVLayout, Part
from llm_datadist.integrations.vllm.kv_transfer_params import RankAddress
from llm_datadist.integrations.vllm.rank_layouts import RankLayouts
from llm_datadist.integrations.vllm.worker.compatibility import Expected
from llm_datadist.integrations.vllm.worker.producer_links import Incompatible
from llm_datadist.integrations.vllm.worker.sources import SourceFinder
from llm_datadist.layouts import dense, heads_of_rank

FACTS = {"model": "m"}


def sources(tp_size, rank, kv_heads=4):
    """Of one worker of a consumer."""
    layout = dense(
        ("block", "head", "plane", "element"), layers=range(3), kv_heads=kv_heads,
        heads=heads_of_rank(kv_heads, tp_size, rank), head_size=8, data_type=DataType.DT_FLOAT,
        block_tokens=32, interior="opaque heads", packing="CPU_ATTN vec",
    )  # fmt: skip
    memory = KVLayout((Part(0, (1, 2, 3), 9, layout.strides.block, ("a",)),), (32,), "F", rank)
    known = RankLayouts((layout,), (0,), tp_size, rank, (32,), "CPU_ATTN vec", "")
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
    }


def test_a_producer_that_cannot_be_used_is_named_with_both_values():
    with pytest.raises(Incompatible, match=r"block size 64, the consumer .* block size 32"):
        sources(1, 0).find(*producer(1, 64))


def test_routers_that_change_offers_cost_no_memory():
    found = sources(1, 0)
    for number in range(100):
        found.find(*producer(4 * number + 4))
    assert len(found._found) <= 64
