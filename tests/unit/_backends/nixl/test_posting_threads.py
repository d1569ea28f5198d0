"""Threads that post side by side: never waited for while they do something else."""

from __future__ import annotations

import threading

import pytest

from llm_datadist._backends.nixl.posting_threads import PostingThreads


def no_stop():
    pytest.fail("stopped")


@pytest.fixture
def posters():
    made = PostingThreads(2)
    yield made
    made.dismiss()


def test_the_parts_run_at_the_same_time(posters):
    together = threading.Barrier(2, timeout=10)
    names = []

    def part():
        together.wait()
        names.append(threading.current_thread())

    posters.run(part, no_stop)
    assert len(set(names)) == 2
    assert threading.current_thread() not in names


def test_work_that_finds_them_busy_goes_on_at_once(posters):
    begun, end = threading.Barrier(3, timeout=10), threading.Event()

    def slow():
        begun.wait()
        end.wait(10)

    caller = threading.Thread(target=posters.run, args=(slow, no_stop))
    caller.start()
    begun.wait()
    on = []
    posters.run(lambda: on.append(threading.current_thread()), no_stop)
    end.set()
    caller.join()
    assert on == [threading.current_thread()]
    posters.run(lambda: on.append(threading.current_thread()), no_stop)
    assert threading.current_thread() not in on[1:]
    assert len(on) == 3


def test_without_threads_the_caller_does_it(posters, monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    on = []
    posters.run(lambda: on.append(threading.current_thread()), no_stop)
    assert on == [threading.current_thread()]


def test_an_error_comes_out_when_all_have_ended(posters):
    together, ended = threading.Barrier(2, timeout=10), []

    def part():
        if together.wait() == 0:
            raise ZeroDivisionError
        ended.append(True)

    with pytest.raises(ZeroDivisionError):
        posters.run(part, no_stop)
    assert ended == [True]
    posters.run(together.wait, no_stop)


def test_no_part_outlives_an_interrupted_caller(posters, monkeypatch):
    """What an exception ends must not go on in the caller's memory."""
    begun, stopped = threading.Barrier(3, timeout=10), threading.Event()
    ended = []

    def part():
        begun.wait()
        assert stopped.wait(10)
        ended.append(True)

    def interrupted(parts, timeout):
        begun.wait()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("llm_datadist._backends.nixl.posting_threads.wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            posters.run(part, stopped.set)
    assert ended == [True, True]
    together = threading.Barrier(2, timeout=10)
    posters.run(together.wait, no_stop)
