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

    def handle(_number, _frame):
        handled.release()
        raise Stopped

    def interrupt():
        """Interrupt the call as often as wanted; then the other rank may end."""
        for _ in range(times):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
            assert handled.acquire(timeout=10)
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
