"""Cancellation: which calls of a thread it ends, and that the thread is free afterwards."""

import threading

import pytest

from llm_datadist._backends.cancellation import Canceled, Cancellation, check_canceled


def test_calls_run_until_it_is_canceled():
    cancellation = Cancellation()
    with cancellation:
        check_canceled()
        cancellation.cancel()
        with pytest.raises(Canceled):
            check_canceled()
        with pytest.raises(Canceled):
            check_canceled()
    check_canceled()


def test_one_that_was_canceled_before_begins_nothing():
    cancellation = Cancellation()
    cancellation.cancel()
    with pytest.raises(Canceled), cancellation:
        raise AssertionError("it has begun")
    check_canceled()


def test_other_threads_go_on():
    cancellation, other = Cancellation(), []
    with cancellation:
        cancellation.cancel()
        thread = threading.Thread(target=lambda: other.append(check_canceled()))
        thread.start()
        thread.join()
    assert other == [None]


def test_it_is_no_exception_that_a_handler_of_errors_takes():
    assert not issubclass(Canceled, Exception)
