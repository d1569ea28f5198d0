"""The trial process loads what peers say: it may end, and harms no one by that."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llm_datadist._backends.nixl.agent import Agent, rows_of
from llm_datadist._backends.nixl.bindings import load_bindings
from llm_datadist._backends.nixl.trial import Trial, TrialTimeoutError
from support.nixl_backends import NEEDS_NIXL

pytestmark = [NEEDS_NIXL, pytest.mark.slow]

SOME_S = 40.0
LATE_S = 3.0  # to end a process and to start another; less than one round may take


@pytest.fixture(scope="module")
def peer():
    """A peer's name, its connection and what it says of two regions."""
    agent = Agent(load_bindings(), "peer", "UCX", {})
    memory = np.zeros(8192, np.uint8)
    halves = [
        rows_of(np.array([memory.ctypes.data + at], np.uint64), np.array([4096], np.uint64))
        for at in (0, 4096)
    ]
    for half in halves:
        agent.register(half, "DRAM")
    regions = [agent.region_metadata(half, "DRAM") for half in halves]
    yield "peer", agent.connection_metadata(), regions
    agent.close()


@pytest.fixture
def trial():
    made = Trial(load_bindings(), "UCX", {})
    yield made
    made.close()


def soon():
    return time.monotonic() + SOME_S


def num_descriptors(pid):
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def changed(blob, at, by=0xFF):
    data = bytearray(blob)
    data[at] ^= by
    return bytes(data)


def fatal(connection):
    """UCX ends the process that loads this: a version of an address that there is not."""
    return changed(connection, connection.index(b"|c") + 10)


def test_good_pieces_are_accepted_time_and_again(trial, peer):
    name, connection, regions = peer
    for _ in range(5):
        assert trial.loaded(name, [connection, *regions], soon()) == (3, "")
        assert trial.accepted(name, connection, regions, soon()) == [0, 1]


def test_a_peer_is_connected_to_once(trial, peer):
    """The engine keeps connections, at both ends, also those that it is told to forget."""
    name, connection, regions = peer

    def count():
        """Descriptors of both ends, once the thread of the peer's engine has accepted."""
        counts = [0, 1]
        while len(set(counts[-3:])) > 1:
            time.sleep(0.05)
            counts.append(num_descriptors("self") + num_descriptors(trial._process.pid))
        return counts[-1]

    assert trial.accepted(name, connection, regions, soon()) == [0, 1]
    first = count()
    for _ in range(20):
        assert trial.accepted(name, connection, regions, soon()) == [0, 1]
    assert count() - first <= 2


def test_a_process_that_knows_many_is_started_anew(trial, peer):
    name, connection, regions = peer
    first = trial._process.pid
    many = [regions[0]] * 250
    for _ in range(401):
        assert trial.loaded(name, [connection, *many], soon()) == (251, "")
    assert trial._process.pid != first


def test_a_piece_that_ends_the_process_ends_nothing_else(trial, peer):
    name, connection, regions = peer
    loaded, why_not = trial.loaded(name, [fatal(connection)], soon())
    assert (loaded, why_not) == (0, "a process that loaded it has ended (SIGABRT)")
    assert trial.loaded(name, [connection, *regions], soon()) == (3, "")
    loaded, _ = trial.loaded(name, [fatal(connection)], soon())  # instead of what was known
    assert loaded == 0
    assert trial.loaded(name, [connection, *regions], soon()) == (3, "")


def test_refused_regions_are_left_out(trial, peer, monkeypatch):
    name, connection, regions = peer
    short = regions[0][:-9]
    assert trial.accepted(name, connection, [regions[0], short, regions[1]], soon()) == [0, 2]
    many = [short] * 50 + [regions[0]]
    starts, start = [], trial._start
    monkeypatch.setattr(trial, "_start", lambda: starts.append(start()))
    assert trial.accepted(name, connection, many, soon()) == []
    assert len(starts) <= 3, "each costs a process"


@pytest.mark.parametrize("length", [0, 1, 40, 80, 150])
def test_pieces_that_are_cut_off_are_refused(trial, peer, length):
    name, connection, regions = peer
    assert trial.loaded(name, [connection[:length]], soon())[0] == 0
    assert trial.loaded(name, [connection, regions[0][:length]], soon())[0] <= 1
    assert trial.loaded(name, [connection, *regions], soon()) == (3, "")


def test_nobody_speaks_for_another(trial, peer):
    _, connection, _ = peer
    assert trial.loaded("other", [connection], soon()) == (0, "it names another agent")


def test_a_process_that_was_ended_by_others_is_started_anew(trial, peer):
    name, connection, _ = peer
    assert trial.loaded(name, [connection], soon()) == (1, "")
    trial._process.kill()
    trial._process.wait()
    assert trial.loaded(name, [connection], soon()) == (1, "")


def test_a_deadline_is_kept(trial, peer):
    """A timeout says nothing about the peer; the next trial has a result."""
    name, connection, _ = peer
    assert trial.loaded(name, [connection], soon()) == (1, "")
    os.kill(trial._process.pid, signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(TrialTimeoutError):
        trial.loaded(name, [connection], begun + 0.1)
    assert time.monotonic() - begun < 0.1 + LATE_S
    assert trial.loaded(name, [connection], soon()) == (1, "")


def test_without_an_interpreter_there_is_a_sentence(monkeypatch, peer):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    trial = Trial(load_bindings(), "UCX", {})
    loaded, why_not = trial.loaded(peer[0], [peer[1]], soon())
    assert loaded == 0
    assert "cannot be started" in why_not
    assert "/nowhere/python" in why_not
    trial.close()


def test_an_engine_that_cannot_start_is_a_sentence(peer):
    trial = Trial(load_bindings(), "NONE", {})
    loaded, why_not = trial.loaded(peer[0], [peer[1]], soon())
    assert loaded == 0
    assert "cannot start NIXL" in why_not
    trial.close()


def test_its_end(trial, peer):
    name, connection, _ = peer
    process = trial._process
    trial.close()
    assert process.poll() is not None
    loaded, why_not = trial.loaded(name, [connection], soon())
    assert loaded == 0
    assert "finalized" in why_not
    trial.close()
