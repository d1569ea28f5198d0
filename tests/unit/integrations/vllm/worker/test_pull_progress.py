"""Loads in pulls: a failure leaves everything from the first wrong block on."""

from __future__ import annotations

import pytest

from llm_datadist import LLMException
from llm_datadist.integrations.vllm.kv_layout import KVLayout, Part
from llm_datadist.integrations.vllm.step_orders import Load
from llm_datadist.integrations.vllm.worker import pull_progress
from llm_datadist.integrations.vllm.worker.pull_progress import PullProgress, num_before_faults

PEER = 7


def layout(*parts):
    return KVLayout(
        parts=tuple(
            Part(group, (1,) * tensors, 100, size, ("l",)) for group, tensors, size in parts
        ),
        block_sizes=(4,) * (1 + max(part[0] for part in parts)),
        groups="",
        rank=0,
    )


def load(*blocks):
    return Load("r", None, [[100 + b for b in group] for group in blocks], list(blocks), [])


def test_pulls_follow_the_tokens(monkeypatch):
    monkeypatch.setattr(pull_progress, "PULL_BYTES", 60)
    left = PullProgress(load([1, 2, 3]), layout((0, 2, 10), (0, 1, 5)))  # 25 bytes a block
    assert left.pulls == [
        (0, [101, 102], [1, 2]),
        (1, [101, 102], [1, 2]),
        (0, [103], [3]),
        (1, [103], [3]),
    ]
    assert left.total_bytes == 75
    left.pulls.pop(0)
    assert left.missing_blocks() == {1, 2, 3}  # 1 and 2 are not complete without their second part
    left.pulls.pop(0)
    assert left.missing_blocks() == {3}


def test_each_group_has_parts_and_blocks_of_its_own():
    left = PullProgress(load([1, 2], [7]), layout((0, 1, 10), (1, 1, 20)))
    assert left.pulls == [(0, [101, 102], [1, 2]), (1, [107], [7])]


def test_split():
    left = PullProgress(load([1, 2, 3]), layout((0, 1, 10)))
    left.split_first(1)
    assert left.pulls == [(0, [101], [1]), (0, [102, 103], [2, 3])]


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
    assert num_before_faults([10, 11, 12], [20, 21, 22], PEER, error) == expected
