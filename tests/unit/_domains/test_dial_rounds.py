"""Rounds of dialing: one at a time per peer, 16 peers at once, until no more is wanted."""

import threading
from collections import Counter

import pytest

from llm_datadist import LLMException
from llm_datadist._domains.dial_rounds import SETUPS_AT_ONCE, DialRounds, NextRound, pauses


class Rounds:
    """Counts rounds, and holds each back until told."""

    def __init__(self, wanted=1):
        self.changed = threading.Condition()
        self.begun = Counter()
        self.running = Counter()
        self.most = 0
        self.wanted = wanted
        self.gate = threading.Event()

    def __call__(self, peer_id):
        with self.changed:
            self.begun[peer_id] += 1
            self.running[peer_id] += 1
            self.most = max(self.most, sum(self.running.values()))
            assert self.running[peer_id] == 1
            self.changed.notify_all()
        assert self.gate.wait(10)
        with self.changed:
            self.running[peer_id] -= 1
            self.changed.notify_all()
            again = self.begun[peer_id] < self.wanted
            return NextRound.LATER if again else NextRound.NONE

    def wait_for(self, condition):
        with self.changed:
            assert self.changed.wait_for(condition, 10)


@pytest.fixture
def dialing():
    dialers = []

    def start(rounds):
        dialers.append(DialRounds(rounds))
        return dialers[-1]

    yield start
    for dialer in dialers:
        dialer.close()


def test_16_peers_are_dialed_at_once_and_more_queue(dialing):
    rounds = Rounds()
    dialer = dialing(rounds)
    for peer_id in range(3 * SETUPS_AT_ONCE):
        dialer.wake(peer_id)
    rounds.wait_for(lambda: len(rounds.begun) == SETUPS_AT_ONCE)
    rounds.gate.set()
    rounds.wait_for(lambda: len(rounds.begun) == 3 * SETUPS_AT_ONCE)
    rounds.wait_for(lambda: not sum(rounds.running.values()))
    assert rounds.most == SETUPS_AT_ONCE


def test_a_peer_that_does_not_come_is_not_dialed_a_thousand_times():
    """In the default time limit of 120 s; one that comes waits for a small part of its delay."""
    backoff, elapsed, rounds = pauses(), 0.0, 0
    while elapsed < 120:
        pause = backoff.next()
        assert pause <= 0.02 + 0.07 * elapsed
        elapsed += pause
        rounds += 1
    assert rounds < 150


def test_rounds_of_a_peer_go_on_while_wanted(dialing):
    rounds = Rounds(wanted=4)
    rounds.gate.set()
    dialing(rounds).wake(1)
    rounds.wait_for(lambda: rounds.begun[1] == 4)


def test_a_peer_woken_during_its_round_gets_another(dialing):
    rounds = Rounds(wanted=0)
    dialer = dialing(rounds)
    dialer.wake(1)
    rounds.wait_for(lambda: rounds.begun[1] == 1)
    dialer.wake(1)
    dialer.wake(1)
    rounds.gate.set()
    rounds.wait_for(lambda: rounds.begun[1] == 2)


@pytest.mark.expects_log("a round of dialing cluster 1 failed")
def test_a_round_that_raises_is_followed_by_another(dialing, caplog):
    begun = threading.Semaphore(0)

    def broken(peer_id):
        begun.release()
        raise RuntimeError("broken round")

    dialing(broken).wake(1)
    assert all(begun.acquire(timeout=10) for _ in range(3))
    assert "broken round" in caplog.text


def test_no_round_begins_after_close(dialing):
    rounds = Rounds(wanted=100)
    dialer = dialing(rounds)
    dialer.wake(1)
    rounds.wait_for(lambda: rounds.begun[1] == 1)
    dialer.close()
    dialer.wake(2)
    rounds.gate.set()
    rounds.wait_for(lambda: not sum(rounds.running.values()))
    assert dict(rounds.begun) == {1: 1}


@pytest.mark.expects_log(
    "cluster 7 cannot be dialed now, it is dialed later: .*can't start new thread"
)
def test_a_round_without_a_thread_is_tried_again(dialing, monkeypatch):
    rounds = Rounds()
    rounds.gate.set()
    real, refused = threading.Thread.start, []

    def start(thread):
        if thread.name.endswith("-worker") and not refused:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    dialing(rounds).wake(7)
    rounds.wait_for(lambda: rounds.begun[7] == 1)
    assert refused


def test_a_wake_without_a_thread_is_refused_and_another_one_is_not(dialing, monkeypatch):
    rounds = Rounds()
    rounds.gate.set()
    dialer = dialing(rounds)

    def start(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(LLMException, match=r"^link failed \[LLM_FAILED\].*ulimit -u"):
            dialer.wake(7)
    dialer.wake(8)
    rounds.wait_for(lambda: rounds.begun[8] == 1)
    assert not rounds.begun[7]
