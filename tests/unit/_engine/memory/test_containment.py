"""What is done about the rest of a transfer that met memory at fault (api.md 7.9)."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_datadist._backends.outcomes import Code, Outcome
from llm_datadist._engine.memory.containment import Containment
from llm_datadist._plan import Layout, Plan, plan_blocks

UNIT, UNITS, TENSORS = 64, 12, 3
LOCAL = Layout.of([0x10000 * (t + 1) for t in range(TENSORS)], UNIT * UNITS, UNITS)
REMOTE = Layout.of([0x90000 * (t + 1) for t in range(TENSORS)], UNIT * UNITS, UNITS)
EVERY = [(tensor, unit) for tensor in range(TENSORS) for unit in range(UNITS)]
PLACES = st.sets(st.sampled_from(EVERY), max_size=8)


class Memory:
    """A data plane over made-up memory: it stops at the first bad unit that it meets."""

    def __init__(self, bad_local, bad_remote, order):
        self.bad_local, self.bad_remote = bad_local, bad_remote
        self.order = order
        self.moved = set()
        self.calls = 0

    def move(self, local, remote, length):
        self.calls += 1
        indices = list(range(len(length)))
        self.order.shuffle(indices)
        for index in indices:
            local_pieces = LOCAL.locate(int(local[index]), int(length[index]))
            remote_pieces = REMOTE.locate(int(remote[index]), int(length[index]))
            for own, other in zip(local_pieces, remote_pieces, strict=True):
                if other[:2] in self.bad_remote:
                    return Outcome(Code.REMOTE_FAULT, 14, index)
                if own[:2] in self.bad_local:
                    return Outcome(Code.LOCAL_FAULT, 14, index)
                self.moved.add(other[:2])
        return Outcome(Code.OK)


def whole_plan(order):
    dst = np.array(order, np.int64)
    return plan_blocks(LOCAL, dst, range(TENSORS), REMOTE, np.arange(UNITS), range(TENSORS))


@settings(deadline=None)
@given(PLACES, PLACES, st.permutations(range(UNITS)), st.randoms(use_true_random=False))
def test_every_block_is_moved_or_named(bad_local, bad_remote, order, randomness):
    """Whatever is at fault, however the blocks lie, and in whatever order they are tried."""
    memory = Memory(bad_local, bad_remote, randomness)
    plan = whole_plan(order)
    outcome = memory.move(plan.local, plan.remote, plan.length)
    contained = Containment(memory.move, LOCAL, REMOTE)
    if outcome.code != Code.OK:
        assert contained.finish(plan, outcome) is None
    source_of = {target: source for source, target in enumerate(order)}
    named_local = {bad.piece[:2] for bad in contained.found if bad.is_local}
    named_remote = {bad.piece[:2] for bad in contained.found if not bad.is_local}
    assert named_local <= bad_local
    assert named_remote <= bad_remote
    lost = named_remote | {(tensor, source_of[unit]) for tensor, unit in named_local}
    assert memory.moved | lost == set(EVERY)
    assert not memory.moved & lost
    assert len(contained.found) == len({bad[:2] for bad in contained.found})


def test_one_bad_block_of_many_costs_few_operations():
    units = 4096
    layout = Layout.of([0x1000000], UNIT * units, units)
    plan = Plan(np.array((0x1000000, 0x9000000, UNIT * units), np.uint64), UNIT * units)
    bad = 0x9000000 + UNIT * 1234
    calls = []

    def move(local, remote, length):
        calls.append(int(length[0]))
        begin, end = int(remote[0]), int(remote[0] + length[0])
        return Outcome(Code.REMOTE_FAULT, 14, 0) if begin <= bad < end else Outcome(Code.OK)

    remote = Layout.of([0x9000000], UNIT * units, units)
    contained = Containment(move, layout, remote)
    assert contained.finish(plan, Outcome(Code.REMOTE_FAULT, 14, 0)) is None
    assert [found.piece.unit_index for found in contained.found] == [1234]
    assert len(calls) <= 24


def test_what_comes_in_between_ends_it():
    """A deadline or a peer's death is what the transfer ends with; what was found is kept."""
    plan = whole_plan(range(UNITS))
    outcomes = iter([Outcome(Code.REMOTE_FAULT, 14, 0), *[Outcome(Code.TIMEOUT)] * 9])
    contained = Containment(lambda *_: next(outcomes), LOCAL, REMOTE)
    ended = contained.finish(plan, next(outcomes))
    assert ended.code == Code.TIMEOUT


def test_a_fault_that_is_gone_is_none():
    """All of it can be moved after all: nothing is named."""
    plan = whole_plan(range(UNITS))
    contained = Containment(lambda *_: Outcome(Code.OK), LOCAL, REMOTE)
    assert contained.finish(plan, Outcome(Code.LOCAL_FAULT, 14, 0)) is None
    assert contained.found == []


def test_memory_of_an_unknown_cache_is_named_by_its_address():
    plan = Plan(np.array((0x10000, 0x777, 2 * UNIT), np.uint64), 2 * UNIT)
    contained = Containment(lambda *_: Outcome(Code.REMOTE_FAULT, 14, 0), LOCAL, None)
    assert contained.finish(plan, Outcome(Code.REMOTE_FAULT, 14, 0)) is None
    assert [found[1:] for found in contained.found] == [
        (0x777, UNIT, None),
        (0x777 + UNIT, UNIT, None),
    ]


def test_a_fault_without_a_place_ends_it():
    plan = whole_plan(range(UNITS))
    contained = Containment(lambda *_: Outcome(Code.OK), LOCAL, REMOTE)
    nowhere = Outcome(Code.REMOTE_FAULT, 14, -1)
    assert contained.finish(plan, nowhere) is nowhere
