"""A producer whose library calls fail: its blocks are late, never given away too early."""

from __future__ import annotations

import ctypes
import threading
from types import SimpleNamespace

import pytest

from llm_datadist import LLMException
from llm_datadist.integrations.vllm.options import parse_extra_config
from llm_datadist.integrations.vllm.stages import Stage
from llm_datadist.integrations.vllm.worker import pull_producer as producer_module
from llm_datadist.integrations.vllm.worker import readers as readers_module
from llm_datadist.integrations.vllm.worker.compatibility import write_facts
from llm_datadist.integrations.vllm.worker.pull_producer import PullProducer
from llm_datadist.integrations.vllm.worker.readers import Readers
from llm_datadist.integrations.vllm.worker.reports import Reports
from llm_datadist.leases import LeaseEnd

ALL = ("1", "0", "0 to 3")


class Worker:
    """A worker's instance whose calls fail a given number of times.

    `consumers` has tensor-parallel size and rank, and layers of each worker, as its facts have
    them; others do not answer.
    """

    def __init__(
        self,
        *,
        failing_withdrawals=0,
        failing_publications=0,
        hold_ms=100,
        consumers=None,
        layers=range(4),
    ):
        self.rank_layouts = SimpleNamespace(tp_size=1, rank=0, stage=Stage(layers=layers))
        self.consumers = {9: ALL} if consumers is None else consumers
        self.options = parse_extra_config({"hold_ms": hold_ms})
        self.leased = frozenset()
        self.asked = threading.Event()
        self.cache_manager = SimpleNamespace(
            on_lease_end=lambda callback: setattr(self, "end_lease", callback),
            leased_blocks=self.leased_blocks,
            register_blocks_cache=self.register_page,
            pull_blocks=self.pull_page,
            unregister_cache=lambda cache_id: None,
        )
        self.failing_withdrawals = failing_withdrawals
        self.failing_publications = failing_publications
        self.withdrawn = []

    def leased_blocks(self, cache):
        self.asked.set()
        return self.leased

    def register_page(self, desc, addrs, remote_accessible):
        return SimpleNamespace(cache_id=1, address=addrs[0])

    def pull_page(self, key, cache, src_blocks, dst_blocks):
        if key.cluster_id not in self.consumers:
            raise LLMException("no link")
        names = ("tensor parallel size", "tensor parallel rank", "layers")
        page = write_facts(dict(zip(names, self.consumers[key.cluster_id], strict=False)))
        ctypes.memmove(cache.address, page, len(page))

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
    assert reports.counts.take()["requests_released"] == {"expired": 1}
    assert not producer.is_waiting


@pytest.mark.expects_log("cannot be offered: no room")
def test_a_request_that_could_not_be_published_comes_back_at_once(producers):
    producer, reports = producers(Worker(failing_publications=1))
    producer.publish("r", 256)
    producer.hold("r")
    assert reports.take().sent == {"r"}
    assert not reports.counts.take(), "no block of it was kept"


SPANS = ("0 to 1", "2 to 3")
HALVES = {1: ("2", "0", "0 to 3"), 2: ("2", "1", "0 to 3")}


def ended(reason, cluster_id=9):
    return LeaseEnd(cluster_id, 256, (1, 2), reason)


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
    counted = {"requests_held": {"": 0}, "requests_released": {"fetched": 1}}
    assert reports.counts.take() == counted


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
    assert reports.counts.take()["requests_released"] == {"lease_lost": 1}


def offering(producers, **worker):
    """A producer that holds a request for long."""
    worker = Worker(hold_ms=60_000, **worker)
    producer, reports = producers(worker)
    producer.publish("r", 256)
    producer.hold("r")
    return worker, producer, reports


def test_blocks_come_back_when_every_worker_of_a_larger_engine_has_fetched(producers, eventually):
    _check_two(producers, eventually, HALVES)


@pytest.mark.parametrize("first", [0, 1])
def test_blocks_come_back_when_every_layer_has_been_fetched(producers, eventually, first):
    stages = [("1", "0", "0 to 1"), ("1", "0", "2 to 5")]
    _check_two(producers, eventually, dict(enumerate(stages[first:] + stages[:first], 1)))


def test_heads_and_layers_of_a_consumer_are_counted_together(producers, eventually):
    parts = [(str(size), rank, layers) for size in (2,) for rank in "01" for layers in SPANS]
    worker, producer, _ = offering(producers, consumers=dict(enumerate(parts)))
    for cluster_id in (0, 3, 1):
        worker.end_lease(ended("released", cluster_id))
    eventually(lambda: producer._published["r"].is_counted)
    assert producer.is_waiting, "of rank 1, layers 0 and 1 are missing"
    worker.end_lease(ended("released", 2))
    eventually(lambda: not producer.is_waiting)


@pytest.mark.parametrize("layers", ["", "3"])
def test_a_worker_that_does_not_know_its_layers_has_all(producers, eventually, layers):
    _, producer, _ = offering(producers, consumers={9: ("1", "0", layers)})
    producer._lease_ended(ended("released"))
    eventually(lambda: not producer.is_waiting)


def _check_two(producers, eventually, consumers):
    """Blocks are kept until both workers 1 and 2 have released them."""
    worker, producer, reports = offering(producers, consumers=consumers)
    counted = threading.Event()
    have_all = producer._readers.have_all
    producer._readers.have_all = lambda workers: (have_all(workers), counted.set())[0]
    worker.end_lease(ended("released", 1))
    worker.end_lease(ended("released", 1))  # the same one again
    assert counted.wait(10)
    assert producer.is_waiting
    worker.end_lease(ended("released", 2))
    eventually(lambda: not producer.is_waiting)
    assert worker.withdrawn == [256]
    assert reports.take().sent == {"r"}


@pytest.mark.parametrize("consumers", [{9: ALL}, {9: ()}, {}], ids=["equal", "no facts", "gone"])
def test_a_worker_that_fetches_alone_gives_the_blocks_back(producers, eventually, consumers):
    worker, producer, _ = offering(producers, consumers=consumers)
    worker.end_lease(ended("released"))
    eventually(lambda: not producer.is_waiting)
    assert worker.withdrawn == [256]


@pytest.mark.expects_log("the lease of cluster 1 ended: expired")
def test_a_lost_worker_of_a_larger_engine_gives_the_blocks_back(producers, eventually):
    """The others fail then, and the whole engine computes."""
    worker, producer, _ = offering(producers, consumers=HALVES)
    worker.end_lease(ended("expired", 1))
    eventually(lambda: not producer.is_waiting)
    assert worker.withdrawn == [256]


@pytest.mark.expects_log("not every worker of its consumer has fetched its blocks within hold_ms")
def test_workers_that_do_not_come_are_waited_for_until_the_hold_time_is_over(producers, eventually):
    worker = Worker(consumers=HALVES)
    producer, reports = producers(worker)
    producer.publish("r", 256)
    worker.end_lease(ended("released", 1))
    producer.hold("r")
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


def test_consumers_of_long_ago_are_forgotten(monkeypatch):
    monkeypatch.setattr(readers_module, "_MOST_KEPT", 3)
    cluster_ids = range(1, 20)
    readers = Readers(Worker(consumers=dict.fromkeys(cluster_ids, ALL)))
    for cluster_id in cluster_ids:
        assert readers.have_all([cluster_id])
        assert 0 < len(readers._shares) <= 3
