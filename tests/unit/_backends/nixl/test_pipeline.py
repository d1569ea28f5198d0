"""The slot loop: each chunk moves once, and every end gives its slots back."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from llm_datadist._backends.nixl import pipeline as module
from llm_datadist._backends.nixl.agent import NixlError
from llm_datadist._backends.nixl.landing import Slots
from llm_datadist._backends.nixl.pipeline import Direction, Pipeline
from llm_datadist._backends.outcomes import Code, Outcome
from llm_datadist._backends.transfer import Transfer
from llm_datadist._plan import Plan
from llm_datadist._types.refs import NO_REF

CHUNKS = 5
FAILED = "NIXL has failed"


class Request:
    def __init__(self, done):
        self.done = done

    def poll(self):
        return self.done


class Moves(Direction):
    """Starts what `begin` returns or raises, and finishes at once."""

    max_in_flight = 2

    def __init__(self, begin, num_slots=3):
        self.begin, self.slots = begin, Slots(num_slots)
        self.finished, self.in_flight, self.most = [], 0, 0

    def take_slots(self, wait_s):
        slot = self.slots.take(0)
        return () if slot is None else (slot,)

    def start(self, transfer, chunk, slots):
        begun = self.begin()
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        return begun

    def finish(self, transfer, chunk, slots):
        self.in_flight -= 1
        slots[0].release()
        self.finished.append(int(chunk.local[0]))
        return Outcome(Code.OK, moved_bytes=chunk.total_bytes)


class Lanes:
    def __init__(self):
        self.count, self.guards = 1, {0: 1, 4: 7}
        self.node = SimpleNamespace(guard=self.guards.get)


class Threads:
    """Runs a part on the caller's thread, and counts."""

    runs = 0

    def run(self, part, stop):
        self.runs += 1
        part()


@pytest.fixture
def lanes():
    return Lanes()


@pytest.fixture
def pipeline(monkeypatch, lanes):
    monkeypatch.setattr(module, "SLOT_BYTES", 8)
    return Pipeline(lanes, Threads())


def transfer(seconds=60.0):
    whole = np.arange(CHUNKS, dtype=np.uint64) * np.uint64(8)
    deadline_ns = time.monotonic_ns() + int(seconds * 1e9)
    length = np.full(CHUNKS, 8, np.uint64)
    return Transfer(False, Plan.of(whole, whole, length), (4, 7), NO_REF, deadline_ns)


def raises():
    raise NixlError("refused")


def test_each_chunk_moves_once(pipeline):
    moves = Moves(lambda: Request(True))
    assert pipeline.run(transfer(), moves) == Outcome(Code.OK, moved_bytes=8 * CHUNKS)
    assert moves.finished == [8 * number for number in range(CHUNKS)]
    assert moves.most == 2


def test_without_a_slot_lanes_do_it(pipeline):
    assert pipeline.run(transfer(), Moves(None, num_slots=0)) == "no landing slot is free"


@pytest.mark.parametrize(
    ("begin", "result", "held"),
    [
        (lambda: Outcome(Code.LOCAL_FAULT, 14, 3), Outcome(Code.LOCAL_FAULT, 14, 3), 0),
        (lambda: "withdrawn", "withdrawn", 0),
        (raises, "refused", 1),
        (lambda: Request(False), FAILED, 2),
    ],
)
def test_a_chunk_that_fails_ends_the_transfer(pipeline, begin, result, held):
    moves = Moves(begin)
    found = pipeline.run(transfer(), moves)
    assert found == (result if isinstance(result, str) else result._replace(moved_bytes=0))
    assert moves.slots.num_held == held, "parts of it may be on their way"


@pytest.mark.parametrize(
    ("event", "result"),
    [
        ("deadline", Code.TIMEOUT),
        ("closed", Code.CLOSED),
        ("unregistered", Code.LOCAL_GONE),
        ("stopped", Code.CANCELLED),
        ("no lane", FAILED),
    ],
)
def test_an_engine_that_does_not_finish_is_not_waited_for(pipeline, lanes, event, result):
    request = Request(None)
    moves = Moves(lambda: request)
    lanes.guards.update({"closed": {0: 2}, "unregistered": {4: 9}}.get(event, {}))
    lanes.count = int(event != "no lane")
    if event == "stopped":
        pipeline.stop()
    found = pipeline.run(transfer(0.01 if event == "deadline" else 60), moves)
    assert found == (result if isinstance(result, str) else Outcome(result))
    assert moves.slots.num_held == 2
    request.done = True
    assert moves.slots.num_held == 0


def test_an_engine_that_copies_while_it_posts_gets_threads(monkeypatch, pipeline):
    monkeypatch.setattr(module, "_OBSERVED_BYTES", 8)
    moves = Moves(lambda: Request(True))
    pipeline.run(transfer(), moves)
    assert pipeline.engine_copies
    moves.most = 0
    pipeline.run(transfer(), moves)
    assert (moves.most, pipeline._posting_threads.runs) == (1, 1)
