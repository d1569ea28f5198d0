"""Pauses that grow to a limit."""

from llm_datadist._control.backoff import Backoff


def test_pauses_double_up_to_the_limit_and_start_again():
    backoff = Backoff(1, 5)
    assert [backoff.next() for _ in range(5)] == [1, 2, 4, 5, 5]
    backoff.reset()
    assert backoff.next() == 1


def test_the_limit_may_change_and_the_factor_is_free():
    backoff = Backoff(1, 100, factor=10)
    assert [backoff.next() for _ in range(3)] == [1, 10, 100]
    backoff.longest = 5
    assert backoff.next() == 5
