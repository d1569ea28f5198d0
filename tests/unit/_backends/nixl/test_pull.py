"""Pulls through the engine: the checks before and after, and what the lanes must do."""

from types import SimpleNamespace

import numpy as np
import pytest

from llm_datadist._backends.nixl.pull import Pull
from llm_datadist._backends.outcomes import Code, Outcome
from llm_datadist._backends.transfer import Transfer
from llm_datadist._plan import Plan

WORDS = np.array([4096], np.uint64)
TRANSFER = Transfer(False, Plan.of(WORDS, WORDS, WORDS), (3, 31), (5, 51), 10**18)


class World:
    """A link whose lanes and engine give the outcomes that are set, else OK."""

    def __init__(self, *, problem="", in_hardware=False, is_device=False, **outcomes):
        self.outcomes = outcomes
        self.calls = []
        remote_memory = SimpleNamespace(
            why_unreachable=lambda transfer: problem, is_device=lambda transfer: is_device
        )
        landing = SimpleNamespace(scratch=64, ref=(9, 91))
        slots = SimpleNamespace(landing=landing)
        pipeline = SimpleNamespace(run=self.move)
        self.pull = Pull(pipeline, self, slots, remote_memory, in_hardware)

    def move(self, transfer, direction):
        self.calls.append("engine")
        return self.outcomes.get("engine", Outcome(Code.OK, moved_bytes=4096))

    def probe(self, transfer):
        self.calls.append("probe")
        return self.outcomes.get("probe", Outcome(Code.OK))

    def read(self, transfer):
        self.calls.append(("check", len(transfer.length)))
        assert transfer.cache_ref == TRANSFER.cache_ref
        assert transfer.local_ref == (9, 91)
        return self.outcomes.get("check", Outcome(Code.OK, moved_bytes=1))


def test_the_guards_are_checked_after_the_last_byte():
    world = World()
    assert world.pull.run(TRANSFER) == Outcome(Code.OK, moved_bytes=4096)
    assert world.calls == ["probe", "engine", ("check", 1)]
    world = World(check=Outcome(Code.GONE))
    assert world.pull.run(TRANSFER).code == Code.GONE


def test_memory_that_its_owner_cannot_read_is_not_read():
    world = World(probe=Outcome(Code.REMOTE_FAULT, 14, 0))
    assert world.pull.run(TRANSFER).code == Code.REMOTE_FAULT
    assert world.calls == ["probe"]


@pytest.mark.parametrize(("more", "check"), [({"in_hardware": True}, 1), ({"is_device": True}, 0)])
def test_memory_that_hardware_reads_needs_the_guards_only(more, check):
    world = World(**more)
    assert world.pull.run(TRANSFER).code == Code.OK
    assert world.calls == [("check", check), "engine", ("check", check)]
    world = World(check=Outcome(Code.GONE), **more)
    assert world.pull.run(TRANSFER).code == Code.GONE
    assert "engine" not in world.calls


def test_what_the_engine_cannot_move_is_left_to_the_lanes():
    assert World(problem="not registered").pull.run(TRANSFER) == "not registered"
    world = World(engine="no landing slot is free")
    assert world.pull.run(TRANSFER) == "no landing slot is free"
    world = World(engine=Outcome(Code.TIMEOUT))
    assert world.pull.run(TRANSFER).code == Code.TIMEOUT
    assert world.calls == ["probe", "engine"]
