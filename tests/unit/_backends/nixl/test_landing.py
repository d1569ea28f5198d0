"""Landing slots: one user at a time, and no other one before the engine has finished."""

import threading
from types import SimpleNamespace

import pytest

from llm_datadist._backends.nixl import landing
from llm_datadist._backends.nixl.landing import Slots


@pytest.fixture
def clock(monkeypatch):
    made = SimpleNamespace(now=100.0)
    monkeypatch.setattr(landing.time, "monotonic", lambda: made.now)
    return made


def test_a_slot_has_one_user():
    slots = Slots(1)
    slot = slots.take(0)
    assert slots.take(0) is None
    slot.release()
    assert slots.take(0).index == slot.index


def test_a_waiting_thread_gets_the_next_slot():
    slots = Slots(1)
    slot, found = slots.take(0), []
    thread = threading.Thread(target=lambda: found.append(slots.take(30)))
    thread.start()
    slot.release()
    thread.join()
    assert found[0].index == slot.index


@pytest.mark.parametrize("done", [True, False])
def test_a_slot_is_held_until_the_engine_has_finished(clock, done):
    slots, request = Slots(1), SimpleNamespace(poll=lambda: None)
    slots.take(0).release_when_done(request)
    clock.now += 1000
    assert slots.take(0) is None
    assert slots.num_held == 1
    request.poll = lambda: done
    assert bool(slots.take(0)) == done, "parts of a failed request may still arrive"
    clock.now += 3
    assert slots.num_held == 0


def test_a_slot_in_quarantine_comes_back(clock):
    slots = Slots(1)
    slots.take(0).quarantine()
    assert slots.take(0) is None
    clock.now += 3
    assert slots.take(0) is not None
