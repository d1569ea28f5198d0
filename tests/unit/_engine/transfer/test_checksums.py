"""Checked transfers, with checksums that the test makes up: a byte counts as its value."""

from types import SimpleNamespace

import numpy as np
import pytest

from llm_datadist._backends.outcomes import Code, Outcome
from llm_datadist._backends.transfer import Transfer
from llm_datadist._engine.transfer import checksums
from llm_datadist._engine.transfer.checksums import Checksums, checkable, faults_of
from llm_datadist._plan import Layout, Plan

UNIT, SEGMENT = 4, 8


@pytest.fixture(autouse=True)
def small_segments(monkeypatch):
    monkeypatch.setattr(checksums, "SEGMENT_BYTES", SEGMENT)
    monkeypatch.setattr(checksums, "WINDOW_BYTES", 2 * SEGMENT)


class Peers:
    """Both sides of a link; addresses are offsets in `local` and `remote`."""

    reads_and_sums = False

    def __init__(self, size=32):
        self.local = np.zeros(size, np.uint8)
        self.remote = np.arange(size, dtype=np.uint8)
        self.channel = self.lanes = self
        self.moved, self.asked, self.pending = [], [], 0
        self.corrupted = ()
        self.failing = {}

    def channel_for(self, _transfer):
        return self

    def run(self, transfer):
        self.moved.append((transfer.local.tolist(), transfer.version))
        for local, remote, size in zip(
            transfer.local.tolist(), transfer.remote.tolist(), transfer.length.tolist(), strict=True
        ):
            self.local[local : local + size] = self.remote[remote : remote + size]
        for at in self.corrupted:
            self.local[at] ^= 1
        code = self.failing.get("move", Code.OK)
        return Outcome(code, 0, -1 if code == Code.OK else 0, int(transfer.length.sum()))

    def _sums(self, memory, begins, lengths):
        ranges = zip(begins.tolist(), lengths.tolist(), strict=True)
        return np.array([memory[at : at + size].sum() for at, size in ranges], np.uint32)

    def checksum(self, addresses, length, ref, deadline_ns):
        code = self.failing.get("local", Code.OK)
        found = Outcome(code, 0, -1 if code == Code.OK else len(length) - 1)
        return found, self._sums(self.local, addresses, length)

    def read_and_sum(self, transfer):
        outcome = self.run(transfer)
        code = self.failing.get("window", Code.OK)
        return outcome._replace(code=code), self._sums(self.local, transfer.local, transfer.length)

    def ask_checksum(self, transfer):
        self.asked.append(transfer.remote.tolist())
        self.pending += 1

        def answer():
            self.pending -= 1
            code = self.failing.get("remote", Code.OK)
            return Outcome(code), self._sums(self.remote, transfer.remote, transfer.length)

        return answer

    def transfer(self, *ranges, write=False, version=9):
        words = np.array(ranges, np.uint64).reshape(-1, 2)
        begins, sizes = words[:, 0].copy(), words[:, 1].copy()
        moved = Transfer(
            write, Plan.of(begins, begins, sizes), (1, 1), (2, 1), 10**18, version=version
        )
        outcome, different = Checksums(self).run(self, moved, UNIT)
        assert self.pending == 0, "a question for checksums holds a lane until it is waited for"
        return outcome, list(zip(different.local.tolist(), different.length.tolist(), strict=True))


def test_equal_sides_are_a_success_segment_by_segment():
    peers = Peers()
    assert peers.transfer((0, 8), (8, 8), (16, 4)) == (Outcome(Code.OK, moved_bytes=20), [])
    assert peers.moved == [([0], 9), ([8], 0), ([16], 0)]
    assert peers.asked == [[0, 4], [8, 12], [16]]


def test_what_differs_is_named_and_nothing_is_moved_after_it():
    peers = Peers()
    peers.corrupted = (9,)
    outcome, different = peers.transfer((0, 8), (8, 8), (16, 8))
    assert (outcome.code, outcome.moved_bytes) == (Code.CORRUPT, 16)
    assert different == [(8, 4)]
    assert [begins for begins, _ in peers.moved] == [[0], [8]]


@pytest.mark.parametrize("failing", ["move", "local", "remote"])
def test_a_failure_ends_the_transfer_and_leaves_no_question(failing):
    peers = Peers()
    peers.failing = {failing: Code.TIMEOUT}
    outcome, different = peers.transfer((0, 8), (8, 8))
    assert (outcome.code, outcome.moved_bytes, different) == (Code.TIMEOUT, 8, [])
    assert len(peers.moved) == 1


def test_an_interrupt_leaves_no_question():
    peers = Peers()

    def interrupt(*_):
        raise KeyboardInterrupt

    peers.checksum = interrupt
    with pytest.raises(KeyboardInterrupt):
        peers.transfer((0, 8))
    assert peers.pending == 0


def test_a_failure_names_the_descriptor_that_contains_the_piece():
    peers = Peers()
    peers.failing = {"local": Code.LOCAL_FAULT}
    assert peers.transfer((0, 4), (8, 4))[0].descriptor == 1
    assert peers.transfer((0, 8))[0].descriptor == 0


def test_a_read_is_compared_in_windows_as_its_bytes_arrive():
    peers = Peers()
    peers.reads_and_sums = True
    assert peers.transfer((0, 8), (8, 8), (16, 8)) == (Outcome(Code.OK, moved_bytes=24), [])
    assert peers.moved == [([0, 4, 8, 12], 9), ([16, 20], 0)]
    peers.corrupted = (5,)
    assert peers.transfer((0, 8))[1] == [(4, 4)]
    peers.corrupted, peers.moved = (), []
    assert peers.transfer((0, 8), write=True)[0].code == Code.OK
    assert peers.moved == [([0], 9)], "a push is moved, then compared"


@pytest.mark.parametrize("code", [Code.SYSTEM, Code.REMOTE_FAULT])
def test_a_window_that_cannot_be_read_is_moved_another_way(code):
    peers = Peers()
    peers.reads_and_sums = True
    peers.failing = {"window": code}
    assert peers.transfer((0, 8))[0] == Outcome(Code.OK, moved_bytes=8)
    peers.failing = {"window": Code.GONE}
    assert peers.transfer((0, 8))[0].code == Code.GONE


def test_nothing_is_a_success():
    assert Peers().transfer() == (Outcome(Code.OK), [])


def test_a_checkable_plan_is_cut_between_blocks():
    words = np.array([0], np.uint64)
    plan = Plan.of(words, words, np.array([20], np.uint64))
    assert checkable(plan, 3).length.tolist() == [6, 6, 6, 2]
    assert checkable(plan, 4).length.tolist() == [8, 8, 4]
    assert checkable(plan, 16).length.tolist() == [8, 8, 4]


@pytest.mark.parametrize("write", [False, True])
def test_faults_are_of_the_destination(write):
    local, remote = np.array([0x1000], np.uint64), np.array([0x2000 + UNIT], np.uint64)
    different = Plan.of(local, remote, np.array([UNIT], np.uint64))
    start = 0x2000 if write else 0x1000
    layout = Layout.of([start], 4 * UNIT, 4)
    cache = SimpleNamespace(cache_id=7, is_blocks=True, layout=layout)
    (fault,) = faults_of(different, (2, cache), write=write)
    assert (fault.cluster_id, fault.cache_id, fault.block) == (2, 7, 1 if write else 0)
    (bare,) = faults_of(different, (2, None), write=write)
    assert bare.addr == (0x2000 + UNIT if write else 0x1000)
