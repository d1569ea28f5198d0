"""The bounded cache of the decode process."""

import threading

import pytest

from llm_datadist.cli.bench.trace.block_cache import BlockCache


def served(cache, *hash_ids):
    """Admit a request, let its blocks arrive, release it; return its admission."""
    admission = cache.admit(hash_ids)
    cache.arrived(admission.missing)
    cache.release(admission)
    return admission


def test_blocks_that_were_used_last_stay():
    cache = BlockCache(3)
    assert served(cache, 1, 2, 3).missing.keys() == {1, 2, 3}
    assert served(cache, 1).present == [1]
    again = served(cache, 4, 1, 4)
    assert (list(again.missing), again.present) == ([4], [1])
    assert cache.slots().keys() == {3, 1, 4}  # 2 was the oldest
    assert sorted(cache.slots().values()) == [0, 1, 2]


def test_a_request_that_cannot_fit_is_refused():
    with pytest.raises(ValueError, match="3 blocks are more than the 2 of the cache"):
        BlockCache(2).admit([1, 2, 3])


def in_thread(function, *arguments):
    """Call a function in a thread; return the thread and the list of what it returned or raised."""
    outcome = []

    def call():
        try:
            outcome.append(function(*arguments))
        except RuntimeError as error:
            outcome.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    return thread, outcome


def test_slots_of_requests_that_are_not_done_are_not_taken():
    cache = BlockCache(2)
    first = cache.admit([1, 2])
    thread, outcome = in_thread(cache.admit, [3])
    cache.arrived(first.missing)
    thread.join(0.01)
    assert not outcome
    cache.release(first)
    thread.join()
    assert outcome[0].missing.keys() == {3}


def test_blocks_on_their_way_are_waited_for_not_fetched_again():
    cache = BlockCache(4)
    first = cache.admit([1, 2])
    second = cache.admit([1, 2, 3])
    assert (second.present, list(second.missing)) == ([1, 2], [3])
    assert cache.slots() == {}
    thread, outcome = in_thread(cache.wait_for, second.present)
    cache.arrived([1])
    thread.join(0.01)
    assert not outcome
    cache.arrived([2])
    thread.join()
    assert outcome == [None]
    cache.release(first)
    cache.release(second)


def test_after_a_failure_nobody_waits():
    cache = BlockCache(1)
    cache.admit([1])
    thread, outcome = in_thread(cache.admit, [2])
    cache.abort()
    thread.join()
    assert str(outcome[0]) == "another request failed"
