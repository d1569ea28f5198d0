"""Worker threads that come and go."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future

import pytest

from llm_datadist import LLMException
from llm_datadist._control import workers as module
from llm_datadist._control.workers import Workers, settle


@pytest.fixture
def workers():
    made = Workers("test", limit=3)
    yield made
    made.dismiss()
    assert made.wait_idle(5)


def test_a_call_runs_on_another_thread_and_its_outcome_comes_back(workers):
    ident = workers.submit(threading.get_ident).result(5)
    assert ident != threading.get_ident()
    with pytest.raises(ValueError, match="invalid literal"):
        workers.submit(int, "x").result(5)


def test_calls_run_side_by_side_up_to_the_limit_and_queue_beyond(workers):
    gate, running = threading.Event(), threading.Semaphore(0)

    def call():
        running.release()
        return gate.wait(5)

    futures = [workers.submit(call) for _ in range(5)]
    for _ in range(3):
        assert running.acquire(timeout=5)
    assert not workers.wait_idle(0.01)
    assert not running.acquire(blocking=False)
    gate.set()
    assert all(future.result(5) for future in futures)
    assert workers.wait_idle(5)


def test_an_idle_thread_is_used_again(workers):
    first = workers.submit(threading.get_ident).result(5)
    assert workers.wait_idle(5)
    assert workers.submit(threading.get_ident).result(5) == first


def test_dismissed_threads_go_at_once_and_calls_still_work():
    workers = Workers("dismissed")
    thread = workers.submit(threading.current_thread).result(5)
    assert thread.daemon
    workers.dismiss()
    thread.join(5)
    assert not thread.is_alive()
    assert workers.submit(int, "7").result(5) == 7


def test_a_coroutine_awaits_a_call(workers):
    async def work():
        with pytest.raises(ValueError, match="invalid literal"):
            await workers.run(int, "x")
        return await workers.run(int, "7")

    assert asyncio.run(work()) == 7


def test_a_call_outlives_the_wait_for_it_and_the_loop(workers):
    gate, done = threading.Event(), threading.Event()

    def call():
        assert gate.wait(5)
        done.set()

    async def give_up():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(workers.run(call), 0.01)

    asyncio.run(give_up())
    gate.set()
    assert done.wait(5)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_what_would_end_the_loop_reaches_it_as_an_ordinary_error(workers, kind):
    def call():
        raise kind("of the call")

    async def main():
        with pytest.raises(RuntimeError, match=f"{kind.__name__}.*of the call"):
            await workers.run(call)
        return await workers.run(int, "7")

    assert asyncio.run(main()) == 7


def test_a_call_that_no_thread_can_be_had_for_fails(workers, monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(LLMException, match=r"can't start new thread.*ulimit -u"):
            workers.submit(int, "1").result(5)
    assert workers.submit(int, "2").result(5) == 2


class Stopped(BaseException):
    """What a signal handler raises."""


def test_settling_cancels_what_has_not_begun_and_waits_for_the_rest():
    workers, begun, may_end, ran = (
        Workers("settled", limit=1),
        threading.Event(),
        threading.Event(),
        [],
    )

    def slow():
        begun.set()
        assert may_end.wait(5)
        threading.Event().wait(0.05)
        ran.append("slow")

    futures = [workers.submit(slow), workers.submit(ran.append, "queued")]
    assert begun.wait(5)
    threading.Timer(0, may_end.set).start()
    settle(futures)
    assert ran == ["slow"]
    assert workers.wait_idle(5)
    assert ran == ["slow"]
    workers.dismiss()


def test_a_thread_that_runs_counts_also_if_its_start_was_interrupted(monkeypatch):
    workers, future = Workers("interrupted", limit=1), Future()

    def start(thread, operation):
        thread.start()
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(module, "start", start)
        with pytest.raises(Stopped):
            workers.enqueue(future, threading.get_ident)
    first = future.result(5)
    assert workers.wait_idle(5)
    assert workers.submit(threading.get_ident).result(5) == first
    workers.dismiss()
