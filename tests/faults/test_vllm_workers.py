"""Workers of the vLLM connector that die or freeze under a transfer.

The other one goes on in bounded time: a consumer knows which blocks are right, a producer gets its
blocks back.
"""

from __future__ import annotations

import os
import random
import time

import msgspec
import numpy as np
import pytest

from llm_datadist.integrations.vllm.kv_transfer_params import Offer
from llm_datadist.integrations.vllm.step_orders import StepOrders
from llm_datadist.testing import PeerGroup
from support.vllm.worker_sides import BLOCKS, KEY, Side, load_of, offered

PAGE = 1 << 20
REQUESTS = 4
PER_REQUEST = BLOCKS // REQUESTS
TIMES = {"hold_ms": 1500, "lease_ms": 1200, "transfer_timeout_ms": 800, "link_timeout_ms": 500}
BOUND_S = 6.0
ROUNDS = 8 if os.environ.get("LDD_LONG") else 1
NAMES = [f"r{number}" for number in range(REQUESTS)]


def pattern(shape):
    return np.random.default_rng(3).integers(1, 255, shape, np.uint8)


def blocks_of(number):
    return list(range(number * PER_REQUEST, (number + 1) * PER_REQUEST))


def orders_of(offers):
    """Loads of all offers into the same block numbers, backwards."""
    orders = StepOrders()
    for number, (name, offer) in enumerate(zip(NAMES, offers, strict=True)):
        orders.loads += load_of(offer, blocks_of(number)[::-1], name).loads
    return orders


def offer_all(producer):
    return [
        offered(producer, blocks_of(number), name, KEY * (number + 1))
        for number, name in enumerate(NAMES)
    ]


def producing(member, backend):
    """Body: a producer that offers everything it has."""
    producer = Side("producer", page=PAGE, transfer_backend=backend, **TIMES)
    producer.kv[:] = pattern(producer.kv.shape)
    member.send([offer.to_params() for offer in offer_all(producer)])
    member.wait_end()
    producer.close()


def consuming(member, backend, offers):
    """Body: a consumer that begins to load everything."""
    consumer = Side("consumer", page=PAGE, transfer_backend=backend, **TIMES)
    orders = orders_of([msgspec.convert(offer, Offer) for offer in offers])
    member.send("begins")
    consumer.worker.carry_out(orders, is_idle=True)
    member.wait_end()
    consumer.close()


@pytest.mark.slow
@pytest.mark.parametrize("round_", range(ROUNDS))
@pytest.mark.parametrize("backend", ["host", "tcp"])
@pytest.mark.parametrize("how", ["kill", "freeze"])
@pytest.mark.expects_log(".*")
def test_a_consumer_knows_what_a_lost_producer_has_sent(how, backend, round_):
    consumer = Side("consumer", page=PAGE, transfer_backend=backend, **TIMES)
    with PeerGroup() as group:
        producer = group.start(producing, backend)
        offers = [msgspec.convert(offer, Offer) for offer in producer.receive()]
        expected = pattern(consumer.kv.shape)
        consumer.worker.carry_out(orders_of(offers), is_idle=True)
        time.sleep(random.Random(f"{how}{backend}{round_}").uniform(0, 0.03))
        producer.kill() if how == "kill" else producer.freeze()
        failed, _ = consumer.until(loaded=NAMES, within_s=BOUND_S)
        if how == "freeze":
            producer.thaw()
        for number in range(REQUESTS):
            src = blocks_of(number)
            for src_block, dst_block in zip(src, src[::-1], strict=True):
                if dst_block not in failed:
                    assert (consumer.kv[:, dst_block] == expected[:, src_block]).all()
    consumer.close()


@pytest.mark.slow
@pytest.mark.parametrize("round_", range(ROUNDS))
@pytest.mark.parametrize("backend", ["host", "tcp"])
@pytest.mark.parametrize("how", ["kill", "freeze"])
@pytest.mark.expects_log(".*")
def test_a_producer_gets_back_what_a_lost_consumer_had(how, backend, round_):
    producer = Side("producer", page=PAGE, transfer_backend=backend, **TIMES)
    producer.kv[:] = pattern(producer.kv.shape)
    with PeerGroup() as group:
        offers = [offer.to_params() for offer in offer_all(producer)]
        consumer = group.start(consuming, backend, offers)
        assert consumer.receive() == "begins"
        time.sleep(random.Random(f"{how}{backend}{round_}").uniform(0, 0.03))
        consumer.kill() if how == "kill" else consumer.freeze()
        producer.until(sent=NAMES, within_s=BOUND_S)
        if how == "freeze":
            consumer.thaw()
    producer.close()


@pytest.mark.slow
@pytest.mark.expects_log(".*")
def test_a_frozen_producer_is_waited_for_once():
    """Not once for each request that is in the queue."""
    consumer = Side("consumer", page=PAGE, concurrent_loads=1, **TIMES)
    with PeerGroup() as group:
        producer = group.start(producing, "host")
        offers = [msgspec.convert(offer, Offer) for offer in producer.receive()]
        first, rest = orders_of(offers), orders_of(offers)
        first.loads, rest.loads = first.loads[:1], rest.loads[1:]
        assert consumer.until(loaded=NAMES[:1], orders=first) == (set(), set())
        producer.freeze()
        began = time.monotonic()
        failed, _ = consumer.until(loaded=NAMES[1:], orders=rest, within_s=BOUND_S)
        assert len(failed) == (REQUESTS - 1) * PER_REQUEST
        assert time.monotonic() - began < 2 * TIMES["transfer_timeout_ms"] / 1000
        producer.thaw()
    consumer.close()
