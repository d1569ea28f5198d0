"""Which ranks are asked for what, how far descriptors are merged, and what is refused.

tests/property/test_layouts_property.py compares the descriptors with a model byte by byte.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from llm_datadist import DataType, LLMException, LLMStatusCode
from llm_datadist._plan.layouts import descriptors
from llm_datadist.layouts import (
    KvLayout,
    PlacedLayout,
    Strides,
    dense,
    heads_of_rank,
    plan_pull,
    plan_push,
)

NUM_BLOCKS = 50
MODEL = {"layers": range(4), "kv_heads": 8, "head_size": 16, "data_type": DataType.DT_BF16}


def layout(axes="NHD", tp=1, rank=0, block_tokens=4, **other):
    fields = {**MODEL, "block_tokens": block_tokens, **other}
    heads = heads_of_rank(fields["kv_heads"], tp, rank)
    return dense(axes, **{"heads": heads, **fields})


def placed(made, number=0, num_blocks=NUM_BLOCKS):
    """The cache of rank `number`; tensors do not touch."""
    size = made.tensor_bytes(num_blocks) + 64
    base = 1_000_000_000 * (number + 1)
    return PlacedLayout.of(
        made, [base + place * size for place in range(made.num_tensors)], num_blocks
    )


def pull(sources, wanted, tokens=16, **other):
    ranks = [placed(source, number) for number, source in enumerate(sources, 1)]
    count = [-(-tokens // source.block_tokens) for source in sources]
    src_blocks = other.pop("src_blocks", [list(range(5, 5 + number)) for number in count])
    dst_blocks = list(range(-(-tokens // wanted.block_tokens)))
    return plan_pull(ranks, placed(wanted), src_blocks, dst_blocks, tokens, **other)


def asked(plans):
    return [(part.rank, part.layers, part.heads) for link in plans for part in link.parts]


# Ranks.


def test_each_rank_is_asked_for_its_heads():
    sources = [layout(tp=4, rank=rank) for rank in range(4)]
    plans = pull(sources, layout(tp=2, rank=1))
    assert asked(plans) == [(2, range(4), range(4, 6)), (3, range(4), range(6, 8))]


def test_each_rank_is_asked_for_its_layers():
    sources = [layout(layers=range(low, low + 2)) for low in (0, 2)]
    plans = pull(sources, layout(layers=range(1, 4)))
    assert asked(plans) == [(0, range(1, 2), range(8)), (1, range(2, 4), range(8))]


def test_some_layers():
    plans = pull([layout()], layout(), layers=range(1, 3))
    assert asked(plans) == [(0, range(1, 3), range(8))]
    with pytest.raises(LLMException, match=r"layers is range\(3, 5\).*holds range\(0, 4\)"):
        pull([layout()], layout(), layers=range(3, 5))


def test_replicas_share_the_work():
    sources = [layout(tp=16, rank=rank) for rank in range(16)]
    plans = pull(sources, layout(tp=8, rank=3), prefer=7)
    assert asked(plans) == [(7, range(4), range(3, 4))]
    plans = pull([layout(), layout(layers=range(2))], layout())
    assert asked(plans) == [(0, range(2, 4), range(8)), (1, range(2), range(8))]


def test_what_no_rank_holds_is_named():
    sources = [layout(tp=4, rank=rank) for rank in (0, 1, 3)]
    with pytest.raises(LLMException, match=r"none of the 3 .* heads range\(4, 6\) of layers"):
        pull(sources, layout())
    with pytest.raises(LLMException, match=r"heads range\(0, 8\) of layers range\(2, 4\)"):
        pull([layout(layers=range(2))], layout())


def test_a_push_sends_what_both_hold():
    destinations = [layout(tp=4, rank=rank) for rank in range(4)]
    source = layout(tp=2, rank=1)
    plans = plan_push(
        placed(source), [placed(each, number) for number, each in enumerate(destinations, 1)],
        [1, 2], [[3, 4]] * 4, 8,
    )  # fmt: skip
    assert asked(plans) == [(2, range(4), range(4, 6)), (3, range(4), range(6, 8))]
    with pytest.raises(LLMException, match=r"none of the 1 destinations .*heads range\(4, 8\)"):
        plan_push(placed(source), [placed(destinations[0], 1)], [1], [[3]], 4)


# Merging.


@pytest.mark.parametrize(
    ("src", "dst", "lengths"),
    [
        # 16 tokens of 8 heads of 32 bytes: in all 4,096 bytes in each of 8 tensors.
        (layout("NHD"), layout("NHD"), [4096] * 8),
        (layout("HND"), layout("HND"), [4096] * 8),
        (layout("HND", tp=8, rank=0), layout("NHD", tp=8, rank=0), [512] * 8),
        (layout("NHD", block_tokens=16), layout("NHD"), [4096] * 8),
        (layout("HND", block_tokens=16), layout("HND"), [128] * 8 * 4 * 8),
        (layout("NHD"), layout(("block", "plane", "token", "head", "element")), [1024] * 32),
    ],
)
def test_pieces_are_as_long_as_both_sides_allow(src, dst, lengths):
    (link,) = pull([src], dst)
    assert link.plan.length.tolist() == lengths
    assert link.plan.total_bytes == sum(lengths)


def test_another_order_of_axes_is_a_row_a_piece():
    (link,) = pull([layout("NHD")], layout("HND"), src_blocks=[[9, 7, 5, 3]])
    assert link.plan.length.tolist() == [32] * 16 * 8 * 8


def test_a_rank_of_heads_before_tokens_is_one_piece_per_block():
    sources = [layout("HND", tp=2, rank=rank) for rank in range(2)]
    for link in pull(sources, layout("HND")):
        assert link.plan.length.tolist() == [512] * 4 * 8


def test_planes_and_layers_in_one_block_are_one_piece():
    axes = ("block", "layer", "plane", "head", "token", "element")
    (link,) = pull([layout(axes)], layout(axes))
    assert link.plan.length.tolist() == [16 * 8 * 32 * 2 * 4]


def test_the_end_of_the_tokens_is_not_merged_beyond_them():
    (link,) = pull([layout(("block", "plane", "token", "head", "element"))],
                   layout(("block", "plane", "token", "head", "element")), tokens=6)  # fmt: skip
    # A whole block of K and V with the first tokens of the next K, then those of the next V.
    assert link.plan.length.tolist() == [2048 + 512, 512] * 4


def test_no_tokens_are_no_descriptors():
    assert plan_pull([placed(layout(), 1)], placed(layout()), [[]], [], 0) == []


# Refusals: the text has both values.


def replaced(made, **change):
    return dataclasses.replace(made, **change)


def opaque(block_tokens=4, packing="amx", heads=range(8)):
    return dense(
        ("block", "head", "element"), **MODEL, heads=heads, block_tokens=block_tokens,
        interior="opaque heads", packing=packing,
    )  # fmt: skip


def state(shards=2, rank=0, elements=100):
    return KvLayout(
        range(4), shards, range(rank, rank + 1), elements, DataType.DT_INT8, 64,
        Strides(elements), 1, "opaque blocks", "state",
    )  # fmt: skip


LATENT = ("block", "token", "element")


def latent(kv_heads=1, heads=range(1), head_size=576):
    return dense(
        LATENT if len(heads) == 1 else "NHD", layers=range(4), kv_heads=kv_heads, heads=heads,
        head_size=head_size, data_type=DataType.DT_BF16, block_tokens=4, planes=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("src", "dst", "text"),
    [
        (layout(data_type=DataType.DT_FLOAT16), layout(), "'DT_FLOAT16' at the source"),
        (layout(head_size=32), layout(), r"head_size is 32 at the source \(rank 0\), 16 at"),
        (layout(kv_heads=16), layout(), "kv_heads is 16 at the source"),
        (layout(), opaque(), "interior is 'rows' at the source .*'opaque heads' at"),
        (opaque(), opaque(packing="vec"), "packing is 'amx' .*'vec'"),
        (opaque(block_tokens=8), opaque(), "block_tokens of an opaque interior is 8 .* 4 at"),
        (state(elements=101), state(), "head_size is 101 .* 100"),
        (state(shards=4), state(), "kv_heads is 4 .* 2 at"),
        (latent(head_size=512), latent(), r"elements of a token .* is 512 .* 576"),
        (latent(), layout(), "planes is 1 at the source .* 2 at"),
    ],
)
def test_bytes_that_would_have_to_be_converted_are_refused(src, dst, text):
    with pytest.raises(LLMException, match=text) as caught:
        pull([src], dst)
    assert caught.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


def test_opaque_caches_move_by_whole_blocks():
    sources = [opaque(heads=range(low, low + 4)) for low in (0, 4)]
    plans = pull(sources, opaque(heads=range(2, 6)), tokens=6)
    assert [link.plan.length.tolist() for link in plans] == [[256] * 2 * 8] * 2
    with pytest.raises(LLMException, match=r"src_offset is 2.* 4 tokens"):
        pull([opaque()], opaque(), tokens=2, src_offset=2)
    shards = [state(rank=1), state(rank=0)]
    assert asked(pull(shards, state(rank=0), tokens=64)) == [(1, range(4), range(1))]


def test_a_latent_goes_from_replicas_to_pieces_and_back():
    pieces = [latent(4, range(rank, rank + 1), 144) for rank in range(4)]
    plans = pull([latent()], pieces[2])
    assert asked(plans) == [(0, range(4), range(2, 3))]
    assert plans[0].plan.length.tolist() == [288] * 16 * 4
    assert [link.plan.total_bytes for link in pull(pieces, latent())] == [288 * 64] * 4


def test_pieces_of_a_latent_that_are_apart_are_refused():
    apart = replaced(latent(2, range(2), 288), strides=Strides(8192, token=2048, head=1024))
    assert pull([apart], latent())[0].plan.total_bytes == 1152 * 64
    with pytest.raises(LLMException, match="576 bytes at a distance of 1024"):
        pull([apart], latent(4, range(1), 144))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"src_blocks": [[0, 1, 2]]}, r"src_blocks\[0\] has 3 blocks of 4 tokens, 4 are needed"),
        ({"src_offset": 4}, r"5 are needed for 16 tokens after the first 4"),
        ({"dst_offset": 1}, "dst_blocks has 4 blocks of 4 tokens, 5 are needed"),
        ({"src_blocks": [[0, 1, 2, NUM_BLOCKS]]}, r"src_blocks\[0\]\[3\] is 50"),
        ({"src_blocks": [[0], [1]]}, "src_blocks has 2 lists, 1 sources"),
    ],
)
def test_block_lists_that_do_not_fit_are_refused(arguments, text):
    with pytest.raises(LLMException, match=text):
        pull([layout()], layout(), **arguments)


def test_destinations_are_unique_and_numbers_have_widths():
    with pytest.raises(LLMException, match=r"dst_blocks\[1\] is 3 again"):
        plan_pull([placed(layout(), 1)], placed(layout()), [[1, 2]], [3, 3], 8)
    with pytest.raises(ValueError, match="num_tokens"):
        plan_pull([placed(layout(), 1)], placed(layout()), [[1]], [1], 2**31)
    with pytest.raises(ValueError, match="src_offset"):
        pull([layout()], layout(), src_offset=-1)
    with pytest.raises(TypeError, match="layers must be range"):
        pull([layout()], layout(), layers=[0])


def test_a_layout_that_makes_too_many_pieces_is_refused(monkeypatch):
    monkeypatch.setattr(descriptors, "MAX_DESCRIPTORS", 1000)
    with pytest.raises(LLMException, match="more than 1000 pieces, of 32 bytes each"):
        pull([layout("HND")], layout("NHD"))


def test_addresses_must_match_the_layout():
    with pytest.raises(LLMException, match=r"addrs has 7 addresses, the layout has 8 tensors"):
        PlacedLayout.of(layout(), list(range(1, 8)), 4)
    with pytest.raises(ValueError, match="wrap the 64-bit address space"):
        PlacedLayout.of(layout(), [2**64 - 4096 * 4] * 8, 16)
    with pytest.raises(ValueError, match=r"addrs\[0\] must be in"):
        PlacedLayout.of(layout(), [-1] * 8, 4)
    with pytest.raises(TypeError, match=r"addrs\[0\] must be int"):
        PlacedLayout.of(layout(), [1.5] * 8, 4)
    halves = layout(("plane", "block", "token", "head", "element"), num_blocks=4)
    with pytest.raises(LLMException, match=r"strides.plane is 4096"):
        PlacedLayout.of(halves, [1] * 4, 5)


# A mistake in what is given leads to other bytes, so that a comparison of bytes notices it.


def moves(plans):
    """The set of (destination byte, rank, source byte)."""
    return {
        (local + at, link.rank, remote + at)
        for link in plans
        for local, remote, length in zip(
            link.plan.local.tolist(), link.plan.remote.tolist(), link.plan.length.tolist(),
            strict=True,
        )
        for at in range(0, length, 2)
    }  # fmt: skip


def test_ranks_heads_and_blocks_that_are_swapped_move_other_bytes():
    sources = [layout(tp=2, rank=rank, layers=range(1)) for rank in range(2)]
    wanted = layout(layers=range(1))
    right = moves(pull(sources, wanted))
    assert moves(pull(sources[::-1], wanted)) != right
    heads = [replaced(sources[0], heads=range(3, 7)), replaced(sources[1], heads=range(4))]
    with pytest.raises(LLMException, match=r"heads range\(7, 8\)"):
        pull(heads, wanted)
    off = [[5, 6, 7, 8], [5, 6, 7, 9]]
    assert moves(pull(sources, wanted, src_blocks=off)) != right
    order = [replaced(each, strides=Strides(512, token=32, head=128)) for each in sources]
    assert moves(pull(order, wanted)) != right


def test_equal_tensors_that_touch_become_one_piece():
    made = layout()
    size = made.tensor_bytes(NUM_BLOCKS)
    sides = [
        PlacedLayout.of(made, [base + place * size for place in range(8)], NUM_BLOCKS)
        for base in (1 << 30, 1 << 40)
    ]
    every = list(range(NUM_BLOCKS))
    (link,) = plan_pull([sides[1]], sides[0], [every], every, NUM_BLOCKS * 4)
    assert link.plan.length.tolist() == [8 * size]
    assert link.plan.local.dtype == np.uint64
