"""Plans between unequal layouts against a model that goes byte by byte.

The model lays every cache out as numpy arrays of addresses, so that slicing and transposing them is
numpy's arithmetic. Each byte of the destination must come from the byte that the model says, and
nothing else may be written.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_datadist import DataType
from llm_datadist._plan import Layout, plan_blocks
from llm_datadist.layouts import KvLayout, PlacedLayout, Strides, plan_pull, plan_push

LONG = bool(os.environ.get("LDD_LONG"))
SIZES = {1: DataType.DT_INT8, 2: DataType.DT_BF16, 4: DataType.DT_FLOAT}


@dataclass
class Model:
    """What the ranks of one test have in common."""

    num_layers: int
    planes: int
    kv_heads: int
    head_size: int
    itemsize: int
    interior: str = "rows"


@dataclass
class Rank:
    """A cache: its layout, and the address of each byte by (layer, plane, block, token, head)."""

    placed: PlacedLayout
    bytes_at: np.ndarray
    blocks: list
    offset: int

    @property
    def layout(self):
        return self.placed.layout


@st.composite
def axis_orders(draw, interior):
    """Axes of a tensor from the outermost on; tokens and heads are inside of blocks."""
    inside = ["head"] if interior != "rows" else draw(st.permutations(["token", "head"]))
    order = ["block", *inside]
    for name in draw(st.sampled_from([[], ["plane"], ["plane"], ["layer"], ["layer", "plane"]])):
        order.insert(draw(st.integers(0, len(order))), name)
    return order


@st.composite
def ranks(draw, model, layers, heads, tokens, most_tokens=6, block_tokens=None):
    """A cache that holds the layers and heads, with random axes, gaps, blocks and addresses."""
    block_tokens = block_tokens or draw(st.integers(1, most_tokens))
    opaque = model.interior != "rows"
    offset = draw(st.integers(0, 2 * block_tokens))
    offset -= offset % block_tokens if opaque else 0
    needed = -(-(offset + tokens) // block_tokens)
    num_blocks = needed + draw(st.integers(1, 3))
    if draw(st.booleans()):
        first = draw(st.integers(0, num_blocks - needed))
        blocks = list(range(first, first + needed))
    else:
        blocks = draw(st.permutations(range(num_blocks)))[:needed]
    order = draw(axis_orders(model.interior))
    sizes = {
        "layer": len(layers), "plane": model.planes, "block": num_blocks, "token": block_tokens,
        "head": len(heads),
    }  # fmt: skip
    row = model.head_size * model.itemsize
    row *= block_tokens if model.interior == "opaque heads" else 1
    gaps = [draw(st.sampled_from([0, 0, 0, 1])) for _ in order]
    shape = [sizes[name] + gap for name, gap in zip(order, gaps, strict=True)] + [row]
    split = [name for name in ("layer", "plane") if name not in order]
    num_tensors = int(np.prod([sizes[name] for name in split], dtype=int))
    start = draw(st.integers(1, 9))
    tensors, strides = [], {}
    for _ in range(num_tensors):
        whole = start + np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
        start += whole.size + draw(st.sampled_from([0, 0, 3]))
        cut = whole[tuple(slice(sizes[name]) for name in order)]
        strides = dict(zip(order, [step // 8 for step in cut.strides], strict=False))
        tensors.append(cut)
    inner = [sizes[name] for name in split]
    stacked = np.stack(tensors).reshape(*inner, *tensors[0].shape)
    names = [*split, *order]
    if "token" not in names:
        names.append("token")
        stacked = stacked[..., None, :]
    wanted = ["layer", "plane", "block", "token", "head"]
    stacked = stacked.transpose([*(names.index(name) for name in wanted), -1])
    layout = KvLayout(
        layers, model.kv_heads, heads, model.head_size, SIZES[model.itemsize], block_tokens,
        Strides(**{name: step if sizes[name] > 1 else 0 for name, step in strides.items()}
                | {"block": strides["block"], "layer": strides.get("layer", 0)}),
        model.planes, model.interior, "" if model.interior == "rows" else "p",
    )  # fmt: skip
    addrs = [int(tensor.flat[0]) for tensor in tensors]
    return Rank(PlacedLayout.of(layout, addrs, num_blocks), stacked, blocks, offset)


def divided(whole, parts):
    step = -(-len(whole) // parts)
    return [whole[low : low + step] for low in range(0, len(whole), step)]


@st.composite
def cases(draw, interior="rows"):
    """Ranks that hold all of a model between them, some twice, and a rank that wants a part."""
    model = Model(
        draw(st.integers(1, 4)),
        draw(st.integers(1, 2)),
        draw(st.sampled_from([1, 2, 4])),
        draw(st.integers(1, 3)),
        draw(st.sampled_from(list(SIZES))),
        interior,
    )
    tokens = draw(st.integers(1, 20))
    equal = draw(st.integers(1, 6)) if interior != "rows" else None
    stages = divided(range(model.num_layers), draw(st.integers(1, 2)))
    shards = divided(range(model.kv_heads), draw(st.sampled_from([1, 2, 4])))
    sources = [
        draw(ranks(model, layers, heads, tokens, block_tokens=equal))
        for layers in stages
        for heads in shards
    ]
    for _ in range(draw(st.integers(0, 2))):  # replicas
        like = draw(st.sampled_from(sources)).layout
        sources.append(draw(ranks(model, like.layers, like.heads, tokens, block_tokens=equal)))
    sources = draw(st.permutations(sources))
    low, high = sorted(draw(st.tuples(*[st.integers(0, model.num_layers)] * 2)))
    layers = range(low, high) or range(model.num_layers)
    heads = draw(st.sampled_from(divided(range(model.kv_heads), draw(st.sampled_from([1, 2, 4])))))
    wanted = draw(ranks(model, layers, heads, tokens, block_tokens=equal))
    prefer = draw(st.integers(0, 5))
    return model, sources, wanted, tokens, prefer


def one_offset(ranks):
    """The offset of all ranks of a side: the call has one. Their lists have room for it."""
    return min(rank.offset for rank in ranks)


def modeled(parts, sides, dst, tokens, src_offset, dst_offset, pieces=None):
    """The source (rank, address) of each address of the destination; -1 where nothing lands.

    With `pieces`, parts count a latent's pieces, of which there are that many.
    """
    size = int(dst.bytes_at.max()) + 1
    came_from = np.full(size, -1, np.int64)
    for part in parts:
        src = sides[part.rank]
        opaque = src.layout.interior != "rows"
        step = src.layout.block_tokens if opaque else 1
        for token in range(0, tokens, step):
            at = []
            for side, offset in ((src, src_offset), (dst, dst_offset)):
                place, in_block = divmod(token + offset, side.layout.block_tokens)
                where = side.bytes_at[:, :, side.blocks[place], 0 if opaque else in_block]
                heads = side.layout.heads
                scale = (pieces or side.layout.kv_heads) // side.layout.kv_heads
                where = pieces_of(where, scale)
                first = part.heads.start - heads.start * scale
                layer = part.layers.start - side.layout.layers.start
                at.append(
                    where[layer : layer + len(part.layers), :, first : first + len(part.heads)]
                )
            assert (came_from[at[1]] == -1).all()
            came_from[at[1]] = part.rank << 40 | at[0]
    return came_from


def pieces_of(where, count):
    """Divide the last two axes (head, byte) into `count` times as many heads."""
    *outer, heads, num_bytes = where.shape
    return where.reshape(*outer, heads * count, num_bytes // count)


def moved(plans, dst, *, push=False):
    """What the descriptors do, in the same form."""
    came_from = np.full(int(dst.bytes_at.max()) + 1, -1, np.int64)
    for link in plans:
        plan = link.plan
        assert int(plan.length.sum()) == plan.total_bytes
        src, into = (plan.local, plan.remote) if push else (plan.remote, plan.local)
        for from_addr, to_addr, length in zip(
            src.tolist(), into.tolist(), plan.length.tolist(), strict=True
        ):
            cells = came_from[to_addr : to_addr + length]
            assert len(cells) == length, "a write outside of the cache"
            assert (cells == -1).all(), "a byte is written twice"
            cells[:] = link.rank << 40 | (from_addr + np.arange(length))
    return came_from


def assert_merged(plan):
    touch = (plan.local[1:] == plan.local[:-1] + plan.length[:-1]) & (
        plan.remote[1:] == plan.remote[:-1] + plan.length[:-1]
    )
    assert not touch.any()


def assert_each_once(plans, model, wanted):
    """Every layer and head of the destination is asked of one rank."""
    count = np.zeros((model.num_layers, model.kv_heads), int)
    for link in plans:
        for part in link.parts:
            count[part.layers.start : part.layers.stop, part.heads.start : part.heads.stop] += 1
    held = np.zeros_like(count)
    layers, heads = wanted.layout.layers, wanted.layout.heads
    held[layers.start : layers.stop, heads.start : heads.stop] = 1
    assert (count == held).all()


@pytest.mark.parametrize("interior", ["rows", "opaque heads"])
@given(data=st.data())
@settings(max_examples=1000 if LONG else 60, deadline=None)
def test_a_pull_moves_each_byte_to_its_place(interior, data):
    model, sources, wanted, tokens, prefer = data.draw(cases(interior))
    src_offset, dst_offset = one_offset(sources), wanted.offset
    plans = plan_pull(
        [source.placed for source in sources], wanted.placed,
        [source.blocks for source in sources], wanted.blocks, tokens,
        src_offset=src_offset, dst_offset=dst_offset, prefer=prefer,
    )  # fmt: skip
    assert_each_once(plans, model, wanted)
    parts = [part for link in plans for part in link.parts]
    expected = modeled(parts, sources, wanted, tokens, src_offset, dst_offset)
    assert (moved(plans, wanted) == expected).all()
    for link in plans:
        if len(link.parts) == 1:
            assert_merged(link.plan)


@given(data=st.data())
@settings(max_examples=1000 if LONG else 50, deadline=None)
def test_a_push_moves_what_both_sides_hold(data):
    _, destinations, source, tokens, _ = data.draw(cases())
    dst_offset, src_offset = one_offset(destinations), source.offset
    plans = plan_push(
        source.placed, [each.placed for each in destinations], source.blocks,
        [each.blocks for each in destinations], tokens, src_offset=src_offset,
        dst_offset=dst_offset,
    )  # fmt: skip
    for link in plans:
        dst = destinations[link.rank]
        (part,) = link.parts
        for name in ("layers", "heads"):
            both = set(getattr(source.layout, name)) & set(getattr(dst.layout, name))
            assert set(getattr(part, name)) == both
        own = [link._replace(rank=0, parts=(part._replace(rank=0),))]
        expected = modeled(own[0].parts, [source], dst, tokens, src_offset, dst_offset)
        assert (moved(own, dst, push=True) == expected).all()
        assert_merged(link.plan)


@given(data=st.data())
@settings(max_examples=1000 if LONG else 40, deadline=None)
def test_a_latent_is_divided_at_any_element(data):
    itemsize, elements = data.draw(st.sampled_from([1, 2])), 12
    counts = data.draw(st.tuples(*[st.sampled_from([1, 2, 3, 4, 6])] * 2))
    tokens = data.draw(st.integers(1, 12))
    src_model, dst_model = (Model(1, 1, count, elements // count, itemsize) for count in counts)
    shards = counts[0] if data.draw(st.booleans()) else 1  # pieces at a rank each, or replicated
    sources = [
        data.draw(ranks(src_model, range(1), heads, tokens))
        for heads in divided(range(counts[0]), shards)
    ]
    head = data.draw(st.integers(0, counts[1] - 1))
    wanted = data.draw(ranks(dst_model, range(1), range(head, head + 1), tokens))
    for rank in sources:
        layout = rank.layout
        if len(layout.heads) > 1 and layout.strides.head != layout.row_bytes:
            return  # refused: test_reshape
    src_offset = one_offset(sources)
    plans = plan_pull(
        [source.placed for source in sources], wanted.placed,
        [source.blocks for source in sources], wanted.blocks, tokens,
        src_offset=src_offset, dst_offset=wanted.offset,
    )  # fmt: skip
    parts = [part for link in plans for part in link.parts]
    rows = int(np.lcm(*counts))
    expected = modeled(parts, sources, wanted, tokens, src_offset, wanted.offset, rows)
    assert (moved(plans, wanted) == expected).all()
    assert (expected >= 0).sum() == tokens * elements // counts[1] * itemsize


@given(data=st.data())
@settings(max_examples=1000 if LONG else 40, deadline=None)
def test_equal_layouts_give_the_plan_of_pull_blocks(data):
    model = Model(data.draw(st.integers(1, 3)), 2, 2, 2, 2)
    layers, heads, block_tokens = range(model.num_layers), range(2), 3
    num_blocks = data.draw(st.integers(1, 8))
    shape = (num_blocks, block_tokens, 2, 2)
    layout = KvLayout(
        layers, 2, heads, 2, DataType.DT_BF16, block_tokens, Strides(24, token=8, head=4)
    )
    tensor_bytes = 2 * int(np.prod(shape))
    gap = data.draw(st.sampled_from([0, 8]))
    sides = []
    for base in (100, 100_000):
        addrs = [base + place * (tensor_bytes + gap) for place in range(layout.num_tensors)]
        blocks = data.draw(st.permutations(range(num_blocks)))
        sides.append((addrs, list(blocks)))
    count = data.draw(st.integers(1, num_blocks))
    (src_addrs, src), (dst_addrs, dst) = sides
    src, dst = src[:count], dst[:count]
    (link,) = plan_pull(
        [PlacedLayout.of(layout, src_addrs, num_blocks)],
        PlacedLayout.of(layout, dst_addrs, num_blocks), [src], dst, count * block_tokens,
    )  # fmt: skip
    local, remote = (Layout.of(addrs, tensor_bytes, num_blocks) for addrs in (dst_addrs, src_addrs))
    plain = plan_blocks(
        local, np.array(dst), local.all_tensors, remote, np.array(src), remote.all_tensors
    )
    for column in ("local", "remote", "length"):
        assert (getattr(link.plan, column) == getattr(plain, column)).all()
    assert link.plan.total_bytes == plain.total_bytes
