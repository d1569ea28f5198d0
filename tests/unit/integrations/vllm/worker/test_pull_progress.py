"""Loads in pulls: a failure leaves everything from the first wrong block on."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from llm_datadist import LLMException
from llm_datadist.integrations.vllm.kv_layout import KVLayout, Part
from llm_datadist.integrations.vllm.step_orders import Load
from llm_datadist.integrations.vllm.worker import pull_progress
from llm_datadist.integrations.vllm.worker.pull_progress import PullProgress

PEER = 7
SIZE = 4  # tokens of a block


def layout(*parts):
    return KVLayout(
        parts=tuple(
            Part(group, (1,) * tensors, 100, size, ("l",)) for group, tensors, size in parts
        ),
        block_sizes=(SIZE,) * (1 + max(part[0] for part in parts)),
        groups="",
        rank=0,
    )


def load(*blocks, src_size=SIZE, **more):
    """Blocks of each group, which the producer has at 100 more, or `src_blocks` if given."""
    src = more.pop("src_blocks", [[100 + b for b in group] for group in blocks])
    offer = SimpleNamespace(block_sizes=[src_size] * len(blocks))
    return Load("r", offer, src, list(blocks), [], **more)


def blocks_of(progress):
    return [(pull.part, pull.src_blocks, pull.dst_blocks) for pull in progress.pulls]


def test_pulls_follow_the_tokens(monkeypatch):
    monkeypatch.setattr(pull_progress, "PULL_BYTES", 60)
    left = PullProgress(load([1, 2, 3]), layout((0, 2, 10), (0, 1, 5)))  # 25 bytes a block
    assert blocks_of(left) == [
        (0, [101, 102], [1, 2]),
        (1, [101, 102], [1, 2]),
        (0, [103], [3]),
        (1, [103], [3]),
    ]
    assert [(pull.src_offset, pull.num_tokens) for pull in left.pulls[1:3]] == [(0, 8), (0, 4)]
    assert left.total_bytes == 75
    left.pulls.pop(0)
    assert left.missing_blocks() == {1, 2, 3}  # 1 and 2 are not complete without their second part
    left.pulls.pop(0)
    assert left.missing_blocks() == {3}


def test_each_group_has_parts_and_blocks_of_its_own():
    left = PullProgress(load([1, 2], [7]), layout((0, 1, 10), (1, 1, 20)))
    assert blocks_of(left) == [(0, [101, 102], [1, 2]), (1, [107], [7])]


def test_split():
    left = PullProgress(load([1, 2, 3]), layout((0, 1, 10)))
    left.split_first(1)
    assert blocks_of(left) == [(0, [101], [1]), (0, [102, 103], [2, 3])]
    left.pulls.pop(0)
    left.split_first(1)
    assert blocks_of(left) == [(0, [102], [2]), (0, [103], [3])]


@pytest.mark.parametrize("src_size", [1, 2, 3, 8, 12])
def test_every_token_is_pulled_once_whatever_the_block_sizes(src_size, monkeypatch):
    """However the load is cut: by its size, and after blocks that are known to be good."""
    draw = random.Random(src_size)
    for _ in range(50):
        monkeypatch.setattr(pull_progress, "PULL_BYTES", draw.choice([10, 20, 1000]))
        num_tokens, src_offset = draw.randrange(1, 60), draw.randrange(src_size)
        dst_blocks = draw.sample(range(100), -(-num_tokens // SIZE))
        src_blocks = draw.sample(range(200), -(-(src_offset + num_tokens) // src_size))
        order = load(
            dst_blocks,
            src_blocks=[src_blocks],
            src_size=src_size,
            src_offset=src_offset,
            num_tokens=num_tokens,
        )
        left = PullProgress(order, layout((0, 1, 10)))
        pairs = []
        while left.pulls:
            if len(left.pulls[0].dst_blocks) > 1 and draw.random() < 0.5:
                left.split_first(draw.randrange(1, len(left.pulls[0].dst_blocks)))
            pairs += tokens_of(left.pulls.pop(0), src_size)
        places = range(src_offset, src_offset + num_tokens)
        assert pairs == [
            (
                (src_blocks[place // src_size], place % src_size),
                (dst_blocks[token // SIZE], token % SIZE),
            )
            for token, place in enumerate(places)
        ]


def tokens_of(pull, src_size):
    """Where each token of a pull is read and written: (block, place in it) of both sides."""
    return [
        (
            (pull.src_blocks[(pull.src_offset + token) // src_size],
             (pull.src_offset + token) % src_size),
            (pull.dst_blocks[token // SIZE], token % SIZE),
        )
        for token in range(pull.num_tokens)
    ]  # fmt: skip


def fault(cluster_id, block):
    from llm_datadist._errors import Fault

    return Fault(
        cluster_id=cluster_id, cache_id=1, tensor_index=0, block=block, slot=None, addr=1, size=1
    )


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        ([], 0),
        ([(PEER, 12)], 2),
        ([(PEER, 12), (PEER, 11)], 1),
        ([(99, 22)], 2),  # a fault in local memory counts own blocks
        ([(PEER, 50)], 0),
        ([(PEER, None)], 0),
    ],
)
def test_blocks_before_a_fault(faults, expected):
    error = LLMException("x", faults=[fault(*each) for each in faults])
    left = PullProgress(load([20, 21, 22], src_blocks=[[10, 11, 12]]), layout((0, 1, 10)))
    assert left.num_before_faults([5, PEER], error) == expected


@pytest.mark.parametrize(
    ("src_size", "src_offset", "place", "expected"),
    [(8, 0, 0, 0), (8, 0, 1, 2), (8, 4, 1, 1), (8, 4, 2, 3), (2, 0, 5, 2), (2, 1, 5, 2)],
)
def test_blocks_before_a_fault_in_a_block_of_another_size(src_size, src_offset, place, expected):
    """Local blocks of 4 tokens; the first that needs the producer's block at fault fails."""
    src_blocks = list(range(100, 112))
    order = load(
        [20, 21, 22, 23],
        src_blocks=[src_blocks],
        src_size=src_size,
        src_offset=src_offset,
        num_tokens=16,
    )
    error = LLMException("x", faults=[fault(PEER, src_blocks[place])])
    assert PullProgress(order, layout((0, 1, 10))).num_before_faults([PEER], error) == expected
