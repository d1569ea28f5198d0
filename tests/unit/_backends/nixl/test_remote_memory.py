"""A peer's memory: learned from its log, and let go only when no read uses it."""

import ctypes
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from llm_datadist._backends.nixl import remote_memory as module
from llm_datadist._backends.nixl.agent import NixlError
from llm_datadist._backends.nixl.chunks import chunks
from llm_datadist._backends.nixl.landing import LocalSlots
from llm_datadist._backends.nixl.region_log import RegionLog
from llm_datadist._backends.nixl.region_records import RegionAdded, words_bytes
from llm_datadist._backends.nixl.remote_memory import RemoteMemory
from llm_datadist._backends.nixl.trial import TrialTimeoutError
from llm_datadist._backends.node import Node
from llm_datadist._backends.outcomes import Code, Outcome
from llm_datadist._backends.transfer import Transfer
from llm_datadist._plan import Plan
from llm_datadist._types.refs import NO_REF

KEY = bytes(32)


class Engine:
    """Agent, trial process and lanes of the reader, which loads what it is not told to refuse."""

    def __init__(self):
        self.loaded, self.refused, self.requests, self.timeouts = [], [], [], 0

    def register(self, rows, kind):
        pass

    def load(self, metadata):
        self.loaded.append(metadata)

    def accepted(self, agent, connection, pieces, until):
        if self.timeouts:
            self.timeouts -= 1
            raise TrialTimeoutError
        return [at for at, piece in enumerate(pieces) if piece not in self.refused]

    def start(self, peer, local, remote, kind, *, write):
        if kind == "VRAM":
            raise NixlError("no")
        self.requests.append(SimpleNamespace(done=None, poll=lambda: self.requests[-1].done))
        return self.requests[-1]

    def read(self, transfer):
        ctypes.memmove(
            *(int(each[0]) for each in (transfer.local, transfer.remote, transfer.length))
        )
        return Outcome(Code.OK)


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def node():
    made = Node(13)
    yield made
    made.close()
    made.release()


@pytest.fixture
def log(node):
    made = RegionLog(node, KEY)
    yield made
    made.close()


@pytest.fixture
def memory(node, engine, log):
    peer = SimpleNamespace(agent="p", connection=b"c", log_address=log.address, log_ref=log.ref)
    slots = LocalSlots(node, engine)
    yield RemoteMemory(engine, engine, slots, engine, peer, KEY)
    slots.close()


def add(log, number, kind="DRAM"):
    address, size = (words_bytes(np.array([each], np.uint64)) for each in (number << 20, 4096))
    log.add(RegionAdded(number, kind, 0, 0, address, size, b"%d" % number))


def read_of(number):
    ranges = np.array([number << 20], np.uint64), np.array([4096], np.uint64)
    deadline_ns = time.monotonic_ns() + 60 * 10**9
    return Transfer(False, Plan.of(ranges[0], *ranges), NO_REF, NO_REF, deadline_ns)


def start(memory, number):
    transfer = read_of(number)
    (chunk,) = chunks(transfer.local, transfer.remote, transfer.length, 4096)
    return memory.start(chunk, SimpleNamespace(index=0))


def test_what_the_log_adds_is_reachable_at_once(memory, log, engine):
    for number in (1, 2):
        assert memory.why_unreachable(read_of(number)) == (
            "the peer has not registered that memory with NIXL"
        )
        add(log, number)
        assert memory.why_unreachable(read_of(number)) == ""
    assert engine.loaded == [b"1", b"2"], "each once"
    log.remove(1)
    memory.forget(1 << 20, 1)
    assert start(memory, 1) is None
    assert start(memory, 2) is engine.requests[0]


def test_what_the_trial_process_refuses_is_not_loaded(memory, log, engine):
    engine.refused = [b"1"]
    add(log, 1)
    add(log, 2)
    assert memory.why_unreachable(read_of(1)) == "the peer's regions cannot be loaded"
    assert memory.why_unreachable(read_of(2)) == ""
    assert engine.loaded == [b"2"]


def test_regions_that_were_not_tried_are_tried_again(memory, log, engine):
    engine.timeouts = 1
    add(log, 1)
    assert memory.why_unreachable(read_of(1)) == "the peer's regions were not tried in time"
    assert memory.why_unreachable(read_of(1)) == ""


def test_memory_is_given_up_when_reads_of_it_are_done(memory, log, engine, monkeypatch):
    add(log, 1)
    assert memory.why_unreachable(read_of(1)) == ""
    start(memory, 1)
    assert not memory.is_quiet
    monkeypatch.setattr(module, "_DRAIN_S", 0.01)
    with pytest.raises(TimeoutError):
        memory.forget(1 << 20, 1)
    monkeypatch.setattr(module, "_DRAIN_S", 60)
    thread = threading.Thread(target=memory.forget, args=(1 << 20, 1))
    thread.start()
    engine.requests[0].done = True
    thread.join(60)
    assert memory.is_quiet


def test_a_read_that_the_engine_refuses_pins_nothing(memory, log, engine):
    add(log, 1, "VRAM")
    assert memory.why_unreachable(read_of(1)) == ""
    assert memory.is_device(read_of(1))
    with pytest.raises(NixlError):
        start(memory, 1)
    assert memory.is_quiet
