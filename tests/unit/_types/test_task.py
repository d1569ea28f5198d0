"""CacheTask (api.md 6, checklist 49)."""

import threading
import time

import pytest

from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._types import CacheTask, TaskState

SUCCESS, FAILED = LLMStatusCode.LLM_SUCCESS, LLMStatusCode.LLM_FAILED
TIMEOUT, EXPIRED = LLMStatusCode.LLM_TIMEOUT, LLMStatusCode.LLM_WAIT_PROCESS_TIMEOUT


def task_with(*results, complete=True):
    state = TaskState(len(results))
    for index, status in enumerate(results):
        if status is not None:
            state.set_result(index, status)
    if complete:
        state.complete()
    return CacheTask(state), state


@pytest.mark.parametrize(
    ("results", "overall"),
    [
        ([SUCCESS], SUCCESS),
        ([SUCCESS, SUCCESS], SUCCESS),
        ([SUCCESS, TIMEOUT, FAILED], TIMEOUT),
        ([FAILED, None], FAILED),
        ([None, TIMEOUT], TIMEOUT),
        ([None, None], FAILED),
        ([SUCCESS, None], FAILED),
    ],
)
def test_the_overall_result_is_the_first_failure(results, overall):
    task, _ = task_with(*results)
    assert task.synchronize() is overall
    assert task.get_results() == results


@pytest.mark.parametrize("timeout", [None, 0, 1, 2**64 - 1])
def test_a_complete_task_answers_at_once_and_again_and_again(timeout):
    task, _ = task_with(SUCCESS)
    for _ in range(3):
        assert task.synchronize(timeout) is SUCCESS
        assert task.get_results(timeout_in_millis=timeout) == [SUCCESS]


@pytest.mark.parametrize("timeout", [0, 1, 20])
def test_a_wait_that_expires_says_so_in_every_place_and_a_later_one_may_succeed(timeout):
    task, state = task_with(SUCCESS, None, complete=False)
    assert task.synchronize(timeout) is EXPIRED
    assert task.get_results(timeout) == [EXPIRED, EXPIRED]
    state.set_result(1, SUCCESS)
    state.complete()
    assert task.synchronize(timeout) is SUCCESS
    assert task.get_results(timeout) == [SUCCESS, SUCCESS]


def test_a_wait_lasts_as_long_as_its_timeout():
    task, _ = task_with(None, complete=False)
    start = time.monotonic()
    task.synchronize(30)
    assert 0.03 <= time.monotonic() - start < 5


@pytest.mark.parametrize("call", ["synchronize", "get_results"])
def test_a_timeout_is_a_number_of_milliseconds_or_none(call):
    """api.md checklist 5."""
    task, _ = task_with(SUCCESS)
    for value in ("1", 1.5, True):
        with pytest.raises(TypeError, match="timeout_in_millis must be int"):
            getattr(task, call)(value)
    with pytest.raises(ValueError, match="timeout_in_millis"):
        getattr(task, call)(-1)


def test_several_threads_may_wait_and_all_wake():
    task, state = task_with(None, complete=False)
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(task.synchronize())) for _ in range(4)
    ]
    threads += [
        threading.Thread(target=lambda: answers.append(task.get_results(2**64 - 1)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    assert answers == []
    state.set_result(0, SUCCESS)
    state.complete()
    for thread in threads:
        thread.join(10)
    assert answers.count(SUCCESS) == answers.count([SUCCESS]) == 4


def test_a_failure_stays_and_nothing_changes_after_the_end():
    task, state = task_with(TIMEOUT, SUCCESS, None, complete=False)
    state.set_result(0, SUCCESS)
    state.set_result(1, FAILED)
    state.complete()
    state.complete()
    state.set_result(2, SUCCESS)
    assert task.get_results() == [TIMEOUT, FAILED, None]


def test_results_are_given_out_as_copies():
    task, _ = task_with(SUCCESS)
    task.get_results().clear()
    assert task.get_results() == [SUCCESS]


def test_an_early_end_can_be_asked_for_without_waiting():
    task, state = task_with(None, complete=False)
    assert state.is_canceled is False
    assert state.begin_layer([0])
    for _ in range(2):
        state.ask_to_end()
    assert state.is_canceled is True
    assert state.is_complete is False
    assert task.synchronize(0) is EXPIRED
    assert not state.begin_layer([0])


def test_a_task_prints_its_state():
    """api.md checklist 61."""
    task, state = task_with(SUCCESS, None, complete=False)
    results = "results=[LLMStatusCode.LLM_SUCCESS, None]"
    assert repr(task) == f"CacheTask(is_complete=False, {results})"
    state.complete()
    assert repr(task) == f"CacheTask(is_complete=True, {results})"


def test_cancel_waits_for_the_layer_that_is_under_way():
    """And for nothing else; what had begun has failed, what had not is None."""
    task, state = task_with(SUCCESS, None, None, complete=False)
    assert state.begin_layer([0, 1])
    ended = []
    canceller = threading.Thread(target=lambda: (task.cancel(), ended.append(True)))
    canceller.start()
    while not state.is_canceled:
        time.sleep(0.001)
    canceller.join(0.05)
    assert not ended
    assert task.synchronize(0) is EXPIRED
    state.end_layer()
    canceller.join(10)
    assert ended
    assert task.get_results(0) == [SUCCESS, FAILED, None]
    state.set_result(2, SUCCESS)
    assert task.get_results(0) == [SUCCESS, FAILED, None]
    assert not state.begin_layer([2])


def test_cancel_changes_nothing_of_a_task_that_is_complete():
    task, _ = task_with(SUCCESS, TIMEOUT, None)
    task.cancel()
    assert task.get_results() == [SUCCESS, TIMEOUT, None]


def test_the_exception_behind_a_failure_is_kept():
    task, state = task_with(None, SUCCESS, complete=False)
    error = LLMException("late", status_code=TIMEOUT)
    state.set_result(0, TIMEOUT, error)
    state.set_result(0, FAILED, LLMException("later"))
    assert task.errors == [error, None]
    state.complete()
    state.set_result(1, FAILED, error)
    assert task.errors == [error, None]
