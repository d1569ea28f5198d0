"""What a producer in push mode sends next, of which layers and blocks."""

from __future__ import annotations

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
    num_tokens=100, first=0, wanted=99, blocks=None, prompt="d", repeated=(), layers=None, held=None
):
    made = PushProgress(Send("r", 1, "d", num_tokens), LAYOUT, mailbox=None)
    if blocks is None:
        blocks = list(range(50, 50 + -(-wanted // 32) - first))
    ticket = Ticket(
        cluster_id=1,
        key=2,
        receipt_key=3,
        prompt=prompt,
        first=first,
        blocks=blocks,
        num_tokens=wanted,
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
