"""What a producer in push mode sends next, of which layers and blocks."""

from __future__ import annotations

import dataclasses
import random

import pytest

from llm_datadist.integrations.vllm.kv_layout import KVLayout, Part
from llm_datadist.integrations.vllm.step_orders import Send
from llm_datadist.integrations.vllm.worker.mailbox import Ticket
from llm_datadist.integrations.vllm.worker.push_progress import PushProgress, Run

LAYOUT = KVLayout(
    parts=(
        Part(0, (1, 2, 3), 100, 64, ("a", "b", "c")),
        Part(0, (4,), 100, 32, ("d",)),
    ),
    block_sizes=(32,),
    groups="FullAttentionSpec",
    rank=0,
)


def sending(
    num_tokens=100, first=0, wanted=99, blocks=None, prompt="d", repeated=(), layers=None,
    held=None, size=32, layout=LAYOUT,
):  # fmt: skip
    made = PushProgress(Send("r", 1, "d", num_tokens), layout, mailbox=None)
    if blocks is None:
        blocks = list(range(50, 50 + -(-wanted // size) - first))
    ticket = Ticket(
        cluster_id=1,
        key=2,
        receipt_key=3,
        prompt=prompt,
        first=first,
        blocks=blocks,
        num_tokens=wanted,
        block_size=size,
        tp_size=1,
        rank=0,
        layers=layers,
    )
    made.accept(ticket, repeated, held)
    return made


def compute(made, part, tensors, num_tokens):
    for tensor in tensors:
        made.computed[part][tensor] = num_tokens


def all_runs(made):
    runs = []
    while (run := made.next_run()) is not None:
        made.note_pushed(run)
        runs.append(run)
    return runs


def test_nothing_is_due_before_something_is_computed():
    made = sending()
    assert made.next_run() is None
    assert not made.is_due
    compute(made, 0, [0], 31)
    assert made.next_run() is None, "no block is whole"


def test_whole_blocks_of_a_layer_are_sent_as_they_come():
    made = sending()
    compute(made, 0, [0], 40)
    assert made.is_due
    assert all_runs(made) == [Run(0, range(1), 0, 1)]
    compute(made, 0, [0], 96)
    assert all_runs(made) == [Run(0, range(1), 1, 3)]


def test_layers_that_are_equally_far_go_together():
    made = sending()
    compute(made, 0, [0, 1], 64)
    compute(made, 1, [0], 64)
    assert all_runs(made) == [Run(0, range(2), 0, 2), Run(1, range(1), 0, 2)]
    compute(made, 0, [0, 1, 2], 96)
    assert all_runs(made) == [Run(0, range(2), 2, 3), Run(0, range(2, 3), 0, 3)]


def test_the_last_block_is_sent_when_the_prompt_is_computed():
    made = sending(num_tokens=100, wanted=99)
    compute(made, 0, range(3), 98)
    compute(made, 1, [0], 98)
    assert {run.end for run in all_runs(made)} == {3}
    compute(made, 0, range(3), 100)
    compute(made, 1, [0], 100)
    assert all_runs(made) == [Run(0, range(3), 3, 4), Run(1, range(1), 3, 4)]


def test_only_what_is_wanted_is_sent():
    made = sending(num_tokens=129, first=1, wanted=128)
    compute(made, 1, [0], 129)
    assert all_runs(made) == [Run(1, range(1), 1, 4)]


@pytest.mark.parametrize(
    "ticket",
    [
        {"prompt": "e"},
        {"blocks": [1, 2, 3]},
        {"blocks": [1, 2, 3, 3]},
        {"wanted": 101},
        {"first": 4, "blocks": [1]},
        {"first": -1, "blocks": [1, 2, 3, 4, 5]},
        {"size": 64, "blocks": [1, 2, 3, 4]},
        {"size": 16, "blocks": [1, 2, 3, 4]},
        {"size": 64, "first": 2, "blocks": [1]},
        {"wanted": 0, "blocks": [1]},
        {"size": 0, "blocks": [1]},
        {"size": -32, "blocks": [1]},
        {"size": (1 << 20) + 1, "blocks": [1]},
    ],
)
def test_a_ticket_that_does_not_fit(ticket):
    made = sending(**ticket)
    compute(made, 0, range(3), 100)
    assert "another one" in made.problem
    assert made.next_run() is None
    assert made.is_due, "the consumer must get a receipt"


def test_a_ticket_for_nothing_waits_for_the_end():
    made = sending(first=3, wanted=96, blocks=[])
    compute(made, 0, range(3), 100)
    assert not made.problem
    assert not made.is_due
    made.is_finished = True
    assert made.is_due
    assert made.next_run() is None


def test_parts_that_another_rank_pushes_are_left_to_it():
    made = sending(repeated={0})
    compute(made, 0, range(3), 100)
    compute(made, 1, [0], 100)
    assert [run.part for run in all_runs(made)] == [1]
    made.is_finished = True
    assert made.is_over


def test_a_twin_goes_on_from_the_same_place_on_its_own():
    made = PushProgress(Send("r", 1, "d", 100), LAYOUT, mailbox=None)
    made.blocks += [7]
    compute(made, 0, [0], 32)
    twin = made.twin(None, 1)
    assert (twin.blocks, twin.computed, twin.slot) == ([7], made.computed, 1)
    assert twin.job_id != made.job_id
    twin.blocks += [8]
    compute(twin, 0, [0], 64)
    assert (made.blocks, made.computed[0][0]) == ([7], 32)


@pytest.mark.parametrize(
    ("layers", "held", "sent"),
    [
        ((0, 9), range(4, 7), range(3)),
        ((0, 6), range(4, 7), range(2)),
        ((5, 7), range(4, 7), range(1, 3)),
        ((7, 9), range(4, 7), None),
        (None, range(4, 7), range(3)),
        ((0, 1), None, range(3)),
    ],
)
def test_layers_that_the_consumers_worker_does_not_hold_are_not_sent(layers, held, sent):
    made = sending(layers=layers, held=held)
    compute(made, 0, range(3), 100)
    runs = [] if sent is None else [Run(0, sent, 0, 4)]
    assert all_runs(made) == runs
    made.is_finished = True
    assert made.is_over


@pytest.mark.parametrize("src_size", [16, 24, 32, 64])
@pytest.mark.parametrize("dst_size", [16, 32, 48, 64])
def test_every_token_that_is_wanted_goes_once_to_its_place(src_size, dst_size):
    """Token t is in block t // size, at t % size; equal blocks are sent whole."""
    layout = dataclasses.replace(LAYOUT, parts=LAYOUT.parts[1:], block_sizes=(src_size,))
    for num_tokens in (1, 47, 64, 65, 200):
        for first in range(-(-num_tokens // dst_size)):
            made = sending(num_tokens + 1, first, num_tokens, size=dst_size, layout=layout)
            assert not made.problem
            places = {}
            for computed in (*sorted(random.Random(num_tokens).choices(range(200), k=3)), 201):
                compute(made, 0, [0], min(computed, num_tokens + 1))
                for run in all_runs(made):
                    span = made.span_of(run)
                    begin = run.start * src_size + span.src_offset
                    assert span.num_tokens > 0
                    assert begin + span.num_tokens <= run.end * src_size
                    for step in range(span.num_tokens):
                        place = span.dst_offset + step
                        block = span.dst_blocks[place // dst_size], place % dst_size
                        assert begin + step not in places
                        places[begin + step] = block
            end = -(-num_tokens // dst_size) * dst_size if src_size == dst_size else num_tokens
            assert places == {
                token: (50 + token // dst_size - first, token % dst_size)
                for token in range(first * dst_size, end)
            }
