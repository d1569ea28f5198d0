"""Workers of the vLLM connector in pull mode."""

from __future__ import annotations

import ctypes
import mmap
import time

import pytest

from llm_datadist.integrations.vllm.step_orders import StepOrders
from llm_datadist.integrations.vllm.worker import pull_progress
from support.vllm.worker_sides import BLOCKS, KEY, PAGE, load_of, offer_of, offered

MODE = "pull"
libc = ctypes.CDLL(None, use_errno=True)


@pytest.mark.parametrize(
    "pair", [{}, {"transfer_backend": "tcp"}, {"checksum": "crc32c"}], indirect=True
)
def test_blocks_arrive_and_go_back_at_once(pair):
    producer, consumer = pair
    offer = offered(producer, [3, 7, 5])
    assert consumer.until(loaded=["d"], orders=load_of(offer, [0, 9, 4])) == (set(), set())
    producer.until(sent=["p"], within_s=2)
    assert (consumer.kv[:, [0, 9, 4]] == producer.kv[:, [3, 7, 5]]).all()
    rest = [block for block in range(BLOCKS) if block not in {0, 9, 4}]
    assert not consumer.kv[:, rest].any()


def test_many_requests_at_once(pair):
    producer, consumer = pair
    names = [f"r{i}" for i in range(12)]
    orders = StepOrders()
    for i, name in enumerate(names):
        offer = offered(producer, [2 * i, 2 * i + 1], name, KEY * (i + 1))
        orders.loads += load_of(offer, [2 * i + 1, 2 * i], name).loads
    assert consumer.until(loaded=names, orders=orders) == (set(), set())
    producer.until(sent=names, within_s=2)
    assert (consumer.kv[:, 0::2] == producer.kv[:, 1::2]).all()
    assert (consumer.kv[:, 1::2] == producer.kv[:, 0::2]).all()
    counted = consumer.worker.counts.take()
    assert len(counted.pop("fetch_seconds")["host"]) == 12
    assert counted == {
        "requests_fetched": {"host": 12},
        "fetched_bytes": {"host": 12 * producer.kv[:, :2].nbytes},
        "leases_held": {"": 0},
    }
    assert producer.worker.counts.take()["requests_released"] == {"fetched": 12}


def test_a_dismissed_offer_goes_back_at_once(pair):
    producer, consumer = pair
    offer = offered(producer, [3])
    consumer.worker.carry_out(StepOrders(dismiss=[offer]), is_idle=False)
    producer.until(sent=["p"], within_s=2)


@pytest.mark.parametrize("pair", [{"hold_ms": 200}], indirect=True)
@pytest.mark.expects_log("no consumer has fetched", "will be recomputed")
def test_nobody_comes_or_too_late(pair):
    producer, consumer = pair
    offer = offered(producer, [3, 7])
    producer.until(sent=["p"], within_s=2)
    assert consumer.until(loaded=["d"], orders=load_of(offer, [0, 9])) == ({0, 9}, set())


@pytest.mark.expects_log("will be recomputed")
def test_an_offer_is_good_once(pair):
    producer, consumer = pair
    offer = offered(producer, [3])
    consumer.until(loaded=["d"], orders=load_of(offer, [0]))
    producer.until(sent=["p"])
    assert consumer.until(loaded=["e"], orders=load_of(offer, [1], "e")) == ({1}, set())


@pytest.mark.expects_log("will be recomputed")
def test_a_withdrawn_request_cannot_be_fetched(pair):
    producer, consumer = pair
    offer = offer_of(producer, [3])
    producer.worker.carry_out(StepOrders(publish={"p": KEY}), is_idle=False)
    producer.worker.carry_out(StepOrders(withdraw=["p"]), is_idle=False)
    assert consumer.until(loaded=["d"], orders=load_of(offer, [0])) == ({0}, set())
    assert not consumer.kv.any()


def test_an_abandoned_load_is_reported(pair):
    producer, consumer = pair
    orders = load_of(offered(producer, [3]), [0])
    orders.abandon = ["d"]
    consumer.until(loaded=["d"], orders=orders)
    producer.until(sent=["p"], within_s=2)


def test_blocks_that_the_offer_lacks_count_as_failed(pair):
    producer, consumer = pair
    offer = offered(producer, [3])
    failed, _ = consumer.until(loaded=["d"], orders=load_of(offer, [0], unavailable=[6]))
    assert failed == {6}


@pytest.mark.expects_log("will be recomputed", "fault", "LLM_SUSPECT_REMOTE_ERROR")
def test_a_bad_page_costs_the_blocks_from_it_on(pair):
    producer, consumer = pair
    offer = offered(producer, [3, 4, 8, 5])
    address = producer.kv[1, 8].ctypes.data
    assert libc.mprotect(ctypes.c_void_p(address), PAGE, 0) == 0
    try:
        failed, _ = consumer.until(loaded=["d"], orders=load_of(offer, [0, 1, 2, 6]))
    finally:
        libc.mprotect(ctypes.c_void_p(address), PAGE, mmap.PROT_READ | mmap.PROT_WRITE)
    assert failed == {2, 6}
    assert (consumer.kv[:, [0, 1]] == producer.kv[:, [3, 4]]).all()
    producer.until(sent=["p"], within_s=2)


@pytest.mark.expects_log("will be recomputed: the producer .* does not fit")
def test_another_model_is_refused_with_both_names(sides, caplog):
    producer, consumer = sides("producer", model="one"), sides("consumer", model="two")
    for request_id in ("d", "e"):
        orders = load_of(offer_of(producer, [3]), [0], request_id)
        assert consumer.until(loaded=[request_id], orders=orders) == ({0}, set())
    assert "model: producer 'one', consumer 'two'" in caplog.text
    assert not consumer.kv.any()


@pytest.mark.expects_log(".*")
def test_another_secret_is_refused(sides):
    producer, consumer = sides("producer", secret="a"), sides("consumer", secret="b")
    orders = load_of(offered(producer, [3]), [0])
    assert consumer.until(loaded=["d"], orders=orders) == ({0}, set())
    assert not consumer.kv.any()


@pytest.mark.expects_log("will be recomputed", "link_clusters")
def test_a_producer_that_restarted_is_another_one(sides):
    old, consumer = sides("producer"), sides("consumer")
    offer = offered(old, [3])
    address = old.worker.address
    old.close()
    new = sides("producer", listen=f"{address.ip}:{address.port}")
    new.kv[:] = 1
    new.worker.carry_out(StepOrders(publish={"p": KEY}), is_idle=False)
    assert consumer.until(loaded=["d"], orders=load_of(offer, [0])) == ({0}, set())
    assert not consumer.kv.any()
    orders = load_of(offered(new, [3], "q", 2 * KEY), [0], "e")
    assert consumer.until(loaded=["e"], orders=orders) == (set(), set())
    new.until(sent=["q"])  # the lease is released after the load is reported


@pytest.mark.expects_log("will be recomputed", "peer", "link")
def test_a_link_that_was_lost_is_made_anew(sides, pair):
    producer, consumer = pair
    consumer.until(loaded=["d"], orders=load_of(offered(producer, [3]), [0]))
    producer.until(sent=["p"])
    info = consumer.worker._instance
    producer.worker._instance.instance.unlink_clusters([_cluster(info.cluster_id)])
    orders = load_of(offered(producer, [4], "q", 2 * KEY), [1], "e")
    assert consumer.until(loaded=["e"], orders=orders) == (set(), set())


def _cluster(cluster_id):
    from llm_datadist import LLMClusterInfo

    info = LLMClusterInfo()
    info.remote_cluster_id = cluster_id
    return info


def test_several_groups_report_requests(sides):
    producer, consumer = sides("producer", groups=3), sides("consumer", groups=3)
    producer.kv[:] = 7
    producer.worker.carry_out(StepOrders(publish={"p": KEY}), is_idle=False)
    producer.worker.carry_out(StepOrders(hold=["p"]), is_idle=False)
    offer = offer_of(producer, [3, 4], groups=3)
    orders = load_of(offer, [0, 1], unavailable=[5])
    assert consumer.until(loaded=["d"], orders=orders) == (set(), {"d"})
    assert (consumer.kv[:, [0, 1]] == 7).all()


def test_pulls_of_a_load_are_one_load(pair, monkeypatch):
    monkeypatch.setattr(pull_progress, "PULL_BYTES", 1)
    producer, consumer = pair
    blocks = list(range(10))
    orders = load_of(offered(producer, blocks), blocks[::-1])
    assert consumer.until(loaded=["d"], orders=orders) == (set(), set())
    assert (consumer.kv[:, blocks[::-1]] == producer.kv[:, blocks]).all()


def test_waiting_costs_no_spinning(pair):
    producer, _ = pair
    offered(producer, [3])
    producer.worker.take_ended()
    steps, until = 0, time.monotonic() + 0.5
    while time.monotonic() < until:
        producer.worker.carry_out(StepOrders(), is_idle=True)
        producer.worker.take_ended()
        steps += 1
    assert steps < 200
