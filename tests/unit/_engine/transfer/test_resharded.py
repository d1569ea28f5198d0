"""Requests of several ranks that run at the same time: none outlives its call."""

import signal
import threading
from types import SimpleNamespace

import pytest

from llm_datadist._engine.transfer.resharded import Resharding


class Attempts:
    """Carries out requests that are functions."""

    def run(self, request):
        request()


@pytest.fixture
def resharding():
    instance = SimpleNamespace(
        registry=None, links=None, config=SimpleNamespace(sync_timeout_ms=1000)
    )
    made = Resharding(instance, Attempts())
    yield made
    made.close()


class Stopped(BaseException):
    """What the signal handler raises."""


@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_handler_that_raises_waits_for_the_other_ranks(resharding, times):
    handled, may_end, ended = threading.Semaphore(0), threading.Event(), threading.Event()
    raised = []

    def handle(_number, _frame):
        if len(raised) < times:
            raised.append(True)
            handled.release()
            raise Stopped

    def interrupt():
        """Interrupt the call as often as wanted; then the other rank may end.

        A signal right before the interpreter begins to wait is handled after the wait only.
        """
        for _ in range(times):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
            while not handled.acquire(timeout=0.1):
                signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        may_end.set()

    def other_rank():
        threading.Thread(target=interrupt).start()
        assert may_end.wait(10)
        ended.set()

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with pytest.raises(Stopped):
            resharding._errors([lambda: None, other_rank])
        assert ended.is_set()
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("queued", [True, False])
def test_a_signal_handler_that_raises_while_a_rank_is_handed_over(resharding, monkeypatch, queued):
    """The rank is waited for if its request runs already, and never runs otherwise."""
    begun, ended = threading.Event(), threading.Event()
    enqueue = resharding._workers.enqueue

    def interrupted(future, call):
        if queued:
            enqueue(future, call)
            assert begun.wait(10)
        raise Stopped

    def slow():
        begun.set()
        threading.Event().wait(0.05)
        ended.set()

    monkeypatch.setattr(resharding._workers, "enqueue", interrupted)
    with pytest.raises(Stopped):
        resharding._errors([lambda: None, slow, slow])
    assert ended.is_set() is begun.is_set() is queued


def test_a_failure_that_is_no_error_of_a_rank_waits_for_the_other_ranks(resharding):
    begun, ended = threading.Event(), threading.Event()

    def out_of_memory():
        assert begun.wait(10)
        raise MemoryError

    def slow():
        begun.set()
        threading.Event().wait(0.05)
        ended.set()

    with pytest.raises(MemoryError):
        resharding._errors([lambda: None, out_of_memory, slow])
    assert ended.is_set()
