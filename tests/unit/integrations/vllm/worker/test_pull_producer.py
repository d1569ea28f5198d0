"""A producer whose library calls fail: its blocks are late, never given away too early."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from llm_datadist import LLMException
from llm_datadist.integrations.vllm.options import parse_extra_config
from llm_datadist.integrations.vllm.worker import pull_producer as producer_module
from llm_datadist.integrations.vllm.worker.pull_producer import PullProducer
from llm_datadist.integrations.vllm.worker.reports import Reports
from llm_datadist.leases import LeaseEnd


class Worker:
    """A worker's instance whose calls fail a given number of times."""

    def __init__(self, *, failing_withdrawals=0, failing_publications=0, hold_ms=100):
        self.options = parse_extra_config({"hold_ms": hold_ms})
        self.leased = frozenset()
        self.asked = threading.Event()
        self.cache_manager = SimpleNamespace(
            on_lease_end=lambda callback: setattr(self, "end_lease", callback),
            leased_blocks=self.leased_blocks,
        )
        self.failing_withdrawals = failing_withdrawals
        self.failing_publications = failing_publications
        self.withdrawn = []

    def leased_blocks(self, cache):
        self.asked.set()
        return self.leased

    def publish(self, key):
        if self.failing_publications:
            raise LLMException("no room")
        return [SimpleNamespace(cache_id=key)]

    def withdraw(self, caches):
        if self.failing_withdrawals:
            self.failing_withdrawals -= 1
            raise RuntimeError("not now")
        self.withdrawn += [cache.cache_id for cache in caches]
        self.on_withdrawn()

    def on_withdrawn(self):
        """What is to happen next."""


@pytest.fixture
def producers(monkeypatch):
    monkeypatch.setattr(producer_module, "_RETRY_S", 0.01)
    made = []

    def make(worker):
        reports = Reports()
        made.append(PullProducer(worker, reports))
        return made[-1], reports

    yield make
    for producer in made:
        producer.close()


@pytest.mark.expects_log("not withdrawn yet", "no consumer has fetched")
def test_blocks_come_back_when_the_key_is_withdrawn_at_last(producers, monkeypatch):
    worker = Worker(failing_withdrawals=2)
    producer, reports = producers(worker)
    producer.publish("r", 256)
    producer.hold("r")
    reported = threading.Event()
    monkeypatch.setattr(reports, "note_change", reported.set)
    assert reported.wait(10)
    assert worker.failing_withdrawals == 0
    assert worker.withdrawn == [256]
    assert reports.take().sent == {"r"}
    assert not producer.is_waiting


@pytest.mark.expects_log("cannot be offered: no room")
def test_a_request_that_could_not_be_published_comes_back_at_once(producers):
    producer, reports = producers(Worker(failing_publications=1))
    producer.publish("r", 256)
    producer.hold("r")
    assert reports.take().sent == {"r"}


def ended(reason):
    return LeaseEnd(9, 256, (1, 2), reason)


def test_blocks_come_back_after_the_key_is_withdrawn_when_the_lease_has_ended(
    producers, eventually
):
    worker = Worker(hold_ms=60_000)
    producer, reports = producers(worker)
    at_withdrawal = []
    worker.on_withdrawn = lambda: at_withdrawal.append(reports.take().sent)
    producer.publish("r", 256)
    worker.end_lease(ended("released"))
    assert worker.withdrawn == [], "the request has not ended"
    producer.hold("r")
    eventually(lambda: not producer.is_waiting)
    assert at_withdrawal == [set()]
    assert reports.take().sent == {"r"}


@pytest.mark.expects_log("the lease of cluster 9 ended: expired")
def test_leased_blocks_are_kept_beyond_the_hold_time(producers, eventually):
    worker = Worker()
    worker.leased = frozenset({1})
    producer, reports = producers(worker)
    producer.publish("r", 256)
    producer.hold("r")
    assert worker.asked.wait(10)
    assert worker.withdrawn == []
    assert producer.is_waiting
    worker.end_lease(ended("expired"))
    eventually(lambda: not producer.is_waiting)
    assert worker.withdrawn == [256]
    assert reports.take().sent == {"r"}


def test_a_request_that_is_not_offered_is_withdrawn_and_not_reported(producers):
    worker = Worker()
    producer, reports = producers(worker)
    producer.publish("r", 256)
    producer.withdraw("r")
    assert worker.withdrawn == [256]
    assert reports.take().sent == set()
    worker.end_lease(ended("cache gone"))
