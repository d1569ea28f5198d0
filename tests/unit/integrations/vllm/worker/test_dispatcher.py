"""The dispatcher polls its jobs, and works on each that is due, on one thread at a time."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from llm_datadist.integrations.vllm.worker.dispatcher import Dispatcher


@pytest.fixture
def dispatchers():
    made = []

    def make(poll, work):
        made.append(Dispatcher("test", 2, poll, work))
        return made[-1]

    yield make
    for each in made:
        each.close()


def add(dispatcher, name="j", *, awaits_message=False):
    job = SimpleNamespace(is_busy=False, awaits_message=awaits_message)
    with dispatcher.lock:
        dispatcher.jobs[name] = job
        dispatcher.note_change()
    return job


def test_a_job_is_worked_on_until_it_is_not_due(dispatchers):
    left = [3]
    done = threading.Event()

    def work(job):
        assert job.is_busy
        left[0] -= 1
        if not left[0]:
            done.set()

    job = add(dispatchers(lambda job: left[0] > 0, work))
    assert done.wait(10)
    assert job.awaits_message is False


def test_a_message_is_noticed_without_a_change(dispatchers):
    arrived, done = threading.Event(), threading.Event()
    polled = threading.Event()

    def poll(job):
        polled.set()
        return arrived.is_set() and not done.is_set()

    add(dispatchers(poll, lambda job: done.set()), awaits_message=True)
    assert polled.wait(10)
    arrived.set()
    assert done.wait(10)


def test_close_waits_for_work(dispatchers):
    started, release = threading.Event(), threading.Event()
    ended = []

    def work(job):
        started.set()
        release.wait(10)
        ended.append(job)

    dispatcher = dispatchers(lambda job: not ended, work)
    job = add(dispatcher)
    assert started.wait(10)
    threading.Timer(0.01, release.set).start()
    dispatcher.close()
    assert ended == [job]
    assert not dispatcher.jobs
