"""Counts of transfers: buckets, failures, threads."""

import threading

import pytest

from llm_datadist._engine.transfer.counters import BUCKET_BOUNDS, TransferCounters
from llm_datadist._errors import LLMStatusCode

S = LLMStatusCode


def test_each_operation_and_path_is_counted_by_itself():
    counters = TransferCounters()
    counters.add("pull_blocks", "tcp", 10, 2_000_000)
    counters.add("pull_blocks", "host", 4, 1000)
    counters.add("pull_blocks", "host", 5, 3000)
    counters.add("pull_cache", "host", 7, 1000)
    entries = counters.stats()
    found = [(each.operation, each.path, each.completed, each.num_bytes) for each in entries]
    assert found == [
        ("pull_blocks", "host", 2, 9),
        ("pull_blocks", "tcp", 1, 10),
        ("pull_cache", "host", 1, 7),
    ]
    assert [each.seconds.sum for each in entries] == pytest.approx([4e-6, 2e-3, 1e-6])
    assert [each.seconds.count for each in entries] == [2, 1, 1]


@pytest.mark.parametrize("bucket", [0, 1, 7, len(BUCKET_BOUNDS) - 1])
def test_a_bucket_includes_its_upper_bound(bucket):
    counters = TransferCounters()
    bound_ns = round(BUCKET_BOUNDS[bucket] * 1e9)
    for duration_ns in (bound_ns - 1, bound_ns, bound_ns + 1):
        counters.add("pull_cache", "host", 1, duration_ns)
    (entry,) = counters.stats()
    counts = entry.seconds.counts
    assert len(counts) == len(entry.seconds.bounds) + 1
    assert {index: count for index, count in enumerate(counts) if count} == {
        bucket: 2,
        bucket + 1: 1,
    }


def test_failures_are_counted_by_status():
    counters = TransferCounters()
    for status in (S.LLM_TIMEOUT, S.LLM_LINK_FAILED, S.LLM_TIMEOUT):
        counters.add_failure("pull_cache", "host", status)
    (entry,) = counters.stats()
    assert entry.errors == {"LLM_TIMEOUT": 2, "LLM_LINK_FAILED": 1}
    assert (entry.completed, entry.num_bytes, entry.seconds.sum) == (0, 0, 0)


def test_a_snapshot_does_not_change():
    counters = TransferCounters()
    counters.add_failure("pull_cache", "host", S.LLM_TIMEOUT)
    (before,) = counters.stats()
    counters.add("pull_cache", "host", 1, 1)
    counters.add_failure("pull_cache", "host", S.LLM_TIMEOUT)
    assert (before.completed, before.errors) == (0, {"LLM_TIMEOUT": 1})


def test_no_count_of_any_thread_is_lost():
    counters, number, times = TransferCounters(), 4, 2000
    begun = threading.Barrier(number)

    def count():
        begun.wait(10)
        for _ in range(times):
            counters.add("pull_blocks", "host", 3, 1000)
            counters.add_failure("pull_blocks", "host", S.LLM_TIMEOUT)

    threads = [threading.Thread(target=count) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (entry,) = counters.stats()
    total = number * times
    assert (entry.completed, entry.num_bytes) == (total, 3 * total)
    assert entry.errors == {"LLM_TIMEOUT": total}


def test_counts_of_threads_that_have_ended_are_kept_in_one_place():
    counters = TransferCounters()
    for _ in range(20):
        thread = threading.Thread(target=counters.add, args=("pull_blocks", "host", 1, 1000))
        thread.start()
        thread.join()
    assert len(counters._of_threads) <= 2  # of this thread and the last one
    (entry,) = counters.stats()
    assert entry.completed == entry.num_bytes == 20
    counters.add("pull_blocks", "host", 1, 1000)
    assert counters.stats()[0].completed == 21


@pytest.mark.parametrize("duration_ns", [0, -5, 1, 10**15])
def test_no_duration_is_outside_the_buckets(duration_ns):
    counters = TransferCounters()
    counters.add("pull_blocks", "host", 1, duration_ns)
    (entry,) = counters.stats()
    assert entry.seconds.counts[0 if duration_ns < 10**15 else -1] == 1
