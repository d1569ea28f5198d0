"""Pushes through the engine: slots, what is gathered, and what the target applies."""

from types import SimpleNamespace

import numpy as np
import pytest

from llm_datadist._backends.nixl.chunks import chunks
from llm_datadist._backends.nixl.landing import SLOT_BYTES, Slots
from llm_datadist._backends.nixl.push import Push
from llm_datadist._backends.outcomes import Code, Outcome
from llm_datadist._backends.transfer import Transfer
from llm_datadist._plan import Plan
from llm_datadist._types.refs import NO_REF


def words(*values):
    return np.array(values, np.uint64)


TRANSFER = Transfer(
    True, Plan(words(100, 900, 5000, 7000, 8, 16), 24), (3, 31), (5, 51), 10**18, version=9
)
(CHUNK,) = chunks(TRANSFER.local, TRANSFER.remote, TRANSFER.length, SLOT_BYTES)


class World:
    """A link; `gather` and `push` give the outcomes that are set, else OK."""

    def __init__(self, *, landing_slots=2, **outcomes):
        self.outcomes = outcomes
        self.started, self.pushed = [], []
        local_slots = Slots(3)
        self.take_slot = local_slots.take
        landing = SimpleNamespace(slot=lambda index: 1 << 20)
        slots = SimpleNamespace(take=self.take, gather=self.gather, landing=landing)
        peer = SimpleNamespace(agent="peer", landing_slots=landing_slots, landing_address=1 << 30)
        self.write = Push(self, self, self, slots, peer)

    def take(self, wait_s):
        return self.outcomes.get("slot", self.take_slot)(wait_s)

    def gather(self, slot, chunk, transfer):
        return self.outcomes.get("gather", Outcome(Code.OK, moved_bytes=24))

    def start(self, peer, local, remote, kind, *, write):
        self.started.append((peer, local.tolist(), remote.tolist(), kind, write))
        return "a request"

    def push(self, transfer):
        self.pushed.append(transfer)
        outcome = self.outcomes.get("push", Outcome(Code.OK, moved_bytes=24))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def run(self, transfer, direction):
        return Outcome(Code.OK)


def test_a_chunk_goes_into_a_granted_slot_and_on_to_its_place():
    world = World()
    slots = world.write.take_slots(0)
    assert world.write.start(TRANSFER, CHUNK, slots) == "a request"
    ((peer, local, remote, kind, write),) = world.started
    assert (peer, kind, write) == ("peer", "DRAM", True)
    assert local[0][:2] == [1 << 20, 24]
    granted = slots[1].index
    assert remote[0][:2] == [(1 << 30) + granted * SLOT_BYTES, 24]
    assert world.write.finish(TRANSFER, CHUNK, slots) == Outcome(Code.OK, moved_bytes=24)
    (pushed,) = world.pushed
    assert pushed.local.tolist() == [granted * SLOT_BYTES, granted * SLOT_BYTES + 8]
    assert pushed.remote.tolist() == [5000, 7000]
    assert (pushed.local_ref, pushed.cache_ref, pushed.version) == (NO_REF, (5, 51), 9)
    assert world.write.is_quiet
    assert len({world.write.take_slots(0)[1].index for _ in range(2)}) == 2


@pytest.mark.parametrize(
    ("code", "seen"),
    [
        (Code.GONE, Code.LOCAL_GONE),
        (Code.REMOTE_FAULT, Code.LOCAL_FAULT),
        (Code.LOCAL_FAULT, Code.SYSTEM),
        (Code.TIMEOUT, Code.TIMEOUT),
    ],
)
def test_what_cannot_be_gathered_is_not_sent(code, seen):
    world = World(gather=Outcome(code, 14, 1, 8))
    outcome = world.write.start(TRANSFER, CHUNK, world.write.take_slots(0))
    assert (outcome.code, outcome.descriptor, outcome.moved_bytes) == (seen, 1, 0)
    assert world.started == []


@pytest.mark.parametrize("problem", [Outcome(Code.TIMEOUT), RuntimeError("interrupted")])
def test_a_granted_slot_that_may_still_be_written_rests_a_while(problem):
    world = World(push=problem)
    slots = world.write.take_slots(0)
    if isinstance(problem, Exception):
        with pytest.raises(RuntimeError):
            world.write.finish(TRANSFER, CHUNK, slots)
    else:
        assert world.write.finish(TRANSFER, CHUNK, slots).code == Code.TIMEOUT
    assert not world.write.is_quiet
    assert world.write.take_slots(0)
    assert world.write.take_slots(0) == ()


def test_a_granted_slot_without_a_local_one_is_given_back():
    world = World(slot=lambda wait_s: None)
    assert world.write.take_slots(0) == ()
    world.outcomes.clear()
    assert world.write.take_slots(0)
    assert world.write.take_slots(0)


def test_without_granted_slots_the_lanes_do_it():
    assert World(landing_slots=0).write.run(TRANSFER) == "the peer has no landing slots for us"
    assert World().write.run(TRANSFER) == Outcome(Code.OK)
