"""Plans against a model that goes byte by byte: each byte exactly once, merged maximally."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_datadist._plan import (
    Layout,
    plan_block_copies,
    plan_blocks,
    plan_slot_to_blocks,
    plan_slots,
)

MAX_BLOCKS = 12


@st.composite
def layouts(draw, num_tensors, unit_bytes, num_units):
    """Tensors in any order, touching or apart, never overlapping."""
    tensor_bytes = unit_bytes * num_units
    gaps = draw(st.lists(st.sampled_from([0, 0, 5]), min_size=num_tensors, max_size=num_tensors))
    addrs, at = [], draw(st.integers(1, 50))
    for gap in gaps:
        addrs.append(at)
        at += tensor_bytes + gap
    if draw(st.booleans()):
        addrs = draw(st.permutations(addrs))
    return Layout.of(addrs, tensor_bytes, num_units)


@st.composite
def ranges(draw, num_tensors, count):
    start = draw(st.integers(0, num_tensors - count))
    return range(start, start + count)


@st.composite
def block_cases(draw):
    unit_bytes = draw(st.integers(1, 3))
    sizes = draw(st.integers(1, MAX_BLOCKS)), draw(st.integers(1, MAX_BLOCKS))
    tensors = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    local, remote = (
        draw(layouts(count, unit_bytes, size)) for count, size in zip(tensors, sizes, strict=True)
    )
    count = draw(st.integers(1, min(tensors)))
    push = draw(st.booleans())
    dst_size, src_size = reversed(sizes) if push else sizes
    dst = draw(st.lists(st.integers(0, dst_size - 1), unique=True))
    if draw(st.booleans()):  # what allocators give: runs, in order or reversed
        first = draw(st.integers(0, max(0, src_size - len(dst))))
        src = [min(first + place, src_size - 1) for place in range(len(dst))]
        dst = sorted(dst)
        if draw(st.booleans()):
            src.reverse()
            dst.reverse()
    else:
        src = [draw(st.integers(0, src_size - 1)) for _ in dst]
    local_indices, remote_indices = (src, dst) if push else (dst, src)
    return (
        local, local_indices, draw(ranges(tensors[0], count)),
        remote, remote_indices, draw(ranges(tensors[1], count)), push,
    )  # fmt: skip


def blocks(values):
    return np.array(values, np.int64)


def rows(plan):
    return list(zip(plan.local.tolist(), plan.remote.tolist(), plan.length.tolist(), strict=True))


def merged(pieces):
    """Pieces of one byte or more, neighbors joined."""
    result = []
    for local, remote, length in pieces:
        if result and result[-1][0] + result[-1][2] == local:
            before = result[-1]
            if before[1] + before[2] == remote:
                result[-1] = (before[0], before[1], before[2] + length)
                continue
        result.append((local, remote, length))
    return result


def check(plan, pieces):
    assert rows(plan) == merged(pieces)
    assert plan.total_bytes == sum(length for *_, length in pieces)
    for array in plan.rows:
        assert array.dtype == np.uint64
        assert array.flags.c_contiguous


@given(block_cases())
@settings(max_examples=300, deadline=None)
def test_blocks_are_moved_once_and_merged(case):
    local, local_indices, local_tensors, remote, remote_indices, remote_tensors, push = case
    source = 0 if push else 1
    listed = list(zip(local_indices, remote_indices, strict=True))
    repeated = len({pair[source] for pair in listed}) != len(listed)
    order = sorted(listed, key=lambda pair: pair[1 - source if repeated else source])
    unit = local.unit_bytes
    pieces = [
        (local.starts[a] + x * unit, remote.starts[b] + y * unit, unit)
        for a, b in zip(local_tensors, remote_tensors, strict=True)
        for x, y in order
    ]
    plan = plan_blocks(
        local,
        blocks(local_indices),
        local_tensors,
        remote,
        blocks(remote_indices),
        remote_tensors,
        push=push,
    )
    check(plan, pieces)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_slots(data):
    num_tensors = data.draw(st.integers(1, 20))
    local = data.draw(layouts(num_tensors, data.draw(st.integers(1, 6)), 3))
    remote = data.draw(layouts(num_tensors, data.draw(st.integers(1, 6)), 2))
    count = data.draw(st.integers(1, num_tensors))
    spans = data.draw(ranges(num_tensors, count)), data.draw(ranges(num_tensors, count))
    slots = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 1))
    offsets = tuple(data.draw(st.integers(0, side.unit_bytes - 1)) for side in (local, remote))
    room = min(local.unit_bytes - offsets[0], remote.unit_bytes - offsets[1])
    size = data.draw(st.integers(1, room))
    plan = plan_slots(
        local,
        slots[0],
        spans[0],
        remote,
        slots[1],
        spans[1],
        size,
        local_offset_bytes=offsets[0],
        remote_offset_bytes=offsets[1],
    )
    pieces = [
        (
            local.starts[a] + slots[0] * local.unit_bytes + offsets[0],
            remote.starts[b] + slots[1] * remote.unit_bytes + offsets[1],
            size,
        )
        for a, b in zip(*spans, strict=True)
    ]
    check(plan, pieces)


@given(st.data(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_pieces_of_a_slot(data, push):
    num_tensors = data.draw(st.integers(1, 5))
    block_bytes = data.draw(st.integers(1, 3))
    indices = data.draw(st.lists(st.integers(0, MAX_BLOCKS - 1), unique=True))
    slot_bytes = block_bytes * len(indices) + data.draw(st.integers(1, 4))
    source = data.draw(layouts(num_tensors, slot_bytes, 2))
    target = data.draw(layouts(num_tensors, block_bytes, MAX_BLOCKS))
    slot = data.draw(st.integers(0, 1))
    tensors = range(num_tensors)
    plan = plan_slot_to_blocks(source, slot, tensors, target, blocks(indices), tensors, push=push)
    pieces = []
    for tensor in tensors:
        for piece, block in enumerate(indices):
            from_ = source.starts[tensor] + slot * slot_bytes + piece * block_bytes
            to = target.starts[tensor] + block * block_bytes
            pieces.append((from_, to, block_bytes) if push else (to, from_, block_bytes))
    check(plan, pieces)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12),
    st.randoms(use_true_random=False),
)
@settings(max_examples=200, deadline=None)
def test_copies_within_a_cache_have_the_effect_of_one_after_the_other(pairs, rng):
    cache = Layout.of([0, 7], 7, 7)
    expected = bytearray(range(14))
    for tensor in (0, 7):
        for src, dst in pairs:
            expected[tensor + dst] = expected[tensor + src]
    memory = bytearray(range(14))
    sources, destinations = ([pair[side] for pair in pairs] for side in (0, 1))
    for plan in plan_block_copies(cache, blocks(sources), blocks(destinations)):
        moves = rows(plan)
        rng.shuffle(moves)
        for to, from_, length in moves:
            memory[to : to + length] = memory[from_ : from_ + length]
    assert memory == expected
