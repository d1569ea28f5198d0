"""Counts of the connector: what a report has, and what several come to."""

import msgspec

from llm_datadist.integrations.vllm import transfer_counts
from llm_datadist.integrations.vllm.transfer_counts import TransferCounts, merge, summary


def some_counts():
    counts = TransferCounts()
    counts.add("requests_fetched", "host")
    counts.add("requests_fetched", "host")
    counts.add("fetched_bytes", "host", by=3_000_000)
    counts.observe("fetch_seconds", "host", value=0.25)
    counts.observe("fetch_seconds", "host", value=0.75)
    counts.add("fetch_errors", "tcp", "LLM_TIMEOUT")
    counts.add("leases_held")
    counts.add("leases_held", by=-1)
    return counts


def test_a_report_has_what_was_counted_since_the_last_one():
    counts = some_counts()
    assert counts.take() == {
        "requests_fetched": {"host": 2},
        "fetched_bytes": {"host": 3_000_000},
        "fetch_seconds": {"host": [0.25, 0.75]},
        "fetch_errors": {"tcp/LLM_TIMEOUT": 1},
        "leases_held": {"": 0},
    }
    assert not counts.take()


def test_a_report_travels_as_plain_values():
    taken = some_counts().take()
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(taken)) == taken


def test_reports_of_several_workers_add_up():
    total = some_counts().take()
    merge(total, some_counts().take())
    merge(total, {"requests_recomputed": {"offer": 1}})
    assert total["requests_fetched"] == {"host": 4}
    assert total["fetch_seconds"] == {"host": [0.25, 0.75, 0.25, 0.75]}
    assert total["requests_recomputed"] == {"offer": 1}


def test_a_total_keeps_nothing_of_what_was_added():
    total, added = {}, some_counts().take()
    merge(total, added)
    merge(total, added)
    assert added == some_counts().take()


def test_a_report_that_is_never_taken_stays_small(monkeypatch):
    monkeypatch.setattr(transfer_counts, "_MOST_OBSERVATIONS", 3)
    counts = TransferCounts()
    for _ in range(10):
        counts.observe("fetch_seconds", "host", value=1.0)
    assert counts.take() == {"fetch_seconds": {"host": [1.0] * 3}}


def test_the_line_of_the_log():
    assert summary(some_counts().take()) == {
        "Requests fetched": 2,
        "Mean fetch time (ms)": 500.0,
        "MB fetched": 3.0,
        "Requests recomputed": 0,
        "Fetch errors": 1,
        "Requests released": 0,
    }
    assert set(summary({}).values()) == {0}
