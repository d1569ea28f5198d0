"""Which transfers of a link the engine moves, and how the channel ends."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from llm_datadist._backends.nixl.channel import NixlChannel
from llm_datadist._backends.outcomes import Code, Outcome
from llm_datadist._backends.transfer import Transfer
from llm_datadist._plan import Plan

SMALL, LARGE = 64, 4096
OK = Outcome(Code.OK)


def a_transfer(size=LARGE, **more):
    words = np.array([size], np.uint64)
    return Transfer(
        more.pop("write", False), Plan.of(words, words, words), (3, 31), (5, 51), 1, **more
    )


class Link:
    """A link whose engine gives `outcome`; `calls` has who moved what."""

    link_id = 5
    is_quiet = True

    def __init__(self, outcome=OK, problem=""):
        self.outcome, self.problem = outcome, ""
        self.calls = []
        side = SimpleNamespace(run=self._engine, is_quiet=True)
        pipeline = SimpleNamespace(stop=lambda: self.calls.append("stop"), engine_copies=False)
        self.channel = NixlChannel(
            lanes=self,
            connection=self,
            grants=self,
            remote_memory=SimpleNamespace(
                close=lambda: self.calls.append("memory closed"), is_quiet=True
            ),
            pipeline=pipeline,
            pull=side,
            push=side,
            small_bytes=SMALL,
            facts={},
        )
        self.problem = problem

    def _engine(self, transfer):
        self.calls.append("engine")
        return self.outcome(transfer) if callable(self.outcome) else self.outcome

    def open(self):
        return self.problem

    def read(self, transfer):
        self.calls.append(("read", int(transfer.length.sum())))
        return OK

    def write(self, transfer):
        self.calls.append(("write", int(transfer.length.sum())))
        return OK

    def revoke(self, link_id):
        self.calls.append(("revoked", link_id))

    def close(self, is_quiet):
        assert is_quiet()
        self.calls.append("disconnected")


@pytest.mark.parametrize(("write", "name"), [(False, "read"), (True, "write")])
def test_small_transfers_use_the_lanes(write, name):
    link = Link()
    assert link.channel.run(a_transfer(SMALL, write=write)) == OK
    assert link.channel.run(a_transfer(SMALL + 1, write=write)) == OK
    assert link.channel.run(a_transfer(0, write=write, on_device=True)) == OK
    assert link.calls == [(name, SMALL), "engine", (name, 0)]


def test_small_transfers_of_device_memory_use_the_engine():
    link = Link()
    assert link.channel.run(a_transfer(SMALL, on_device=True)) == OK
    assert link.calls == ["engine"]


@pytest.mark.parametrize("link", [Link("no slot is free"), Link(problem="cannot connect")])
def test_what_the_engine_cannot_move_uses_the_lanes(link):
    assert link.channel.run(a_transfer()) == OK
    assert link.calls[-1] == ("read", LARGE)
    assert link.channel.describe()["over_lanes"] == 1 or link.problem
    link.calls.clear()
    assert link.channel.run(a_transfer(on_device=True)).code == Code.NO_PATH
    assert link.calls[-1] == ("read", 0), "whether the cache is there"


def test_an_outcome_of_the_engine_is_final():
    link = Link(Outcome(Code.GONE))
    assert link.channel.run(a_transfer()).code == Code.GONE
    assert link.calls == ["engine"]


def test_a_channel_is_closed_when_no_transfer_of_it_runs():
    runs, may_end = threading.Event(), threading.Event()

    def slow(transfer):
        runs.set()
        may_end.wait(10)
        link.calls.append("ended")
        return Outcome(Code.CANCELLED)

    link = Link(slow)
    running = threading.Thread(target=link.channel.run, args=(a_transfer(),))
    running.start()
    assert runs.wait(10)
    closing = threading.Thread(target=link.channel.close)
    closing.start()
    closing.join(0.02)
    assert closing.is_alive()
    assert link.channel.run(a_transfer()).code == Code.CANCELLED
    may_end.set()
    closing.join(10)
    running.join(10)
    assert link.calls == [
        "engine",
        "stop",
        "ended",
        "memory closed",
        ("revoked", 5),
        "disconnected",
    ]
