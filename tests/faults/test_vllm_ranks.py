"""A consumer of the vLLM connector whose producer has two workers, of which one dies or freezes.

They divide the heads or the layers of the model.

It knows which blocks are right in bounded time; the other worker gets its blocks back.
"""

from __future__ import annotations

import random
import time

import msgspec
import numpy as np
import pytest

from llm_datadist.integrations.vllm.kv_transfer_params import Offer, RankAddress
from llm_datadist.integrations.vllm.step_orders import StepOrders
from llm_datadist.testing import PeerGroup
from support.vllm.rank_engines import BLOCKS, LAYERS, RankSide
from support.vllm.worker_sides import KEY, load_of

HEAD_SIZE = 256
REQUESTS = 4
PER_REQUEST = BLOCKS // REQUESTS
TIMES = {"hold_ms": 1500, "lease_ms": 1200, "transfer_timeout_ms": 800, "link_timeout_ms": 500}
BOUND_S = 6.0
NAMES = [f"r{number}" for number in range(REQUESTS)]
HALVES = {
    "heads": {"tp_size": 2},
    "layers": {"stages": (range(1), range(1, LAYERS))},
}
AXES = {"heads": 2, "layers": 0}


def pattern(rank, shape):
    return np.random.default_rng(rank).integers(1, 2**31, shape, np.uint32)


def blocks_of(number):
    return list(range(number * PER_REQUEST, (number + 1) * PER_REQUEST))


def producing(member, backend, rank, divided):
    """Body: one of two workers, which offers everything it has until all of it was fetched."""
    options = {"head_size": HEAD_SIZE, "transfer_backend": backend, **HALVES[divided], **TIMES}
    side = RankSide("producer", rank=rank, **options)
    side.kv[:] = pattern(rank, side.kv.shape)
    keys = {name: KEY * (number + 1) for number, name in enumerate(NAMES)}
    side.worker.carry_out(StepOrders(publish=keys), is_idle=False)
    side.worker.carry_out(StepOrders(hold=NAMES), is_idle=False)
    member.send((msgspec.to_builtins(side.worker.address), side.kv.shape))
    side.until(sent=NAMES, within_s=BOUND_S)
    member.send("sent")
    member.wait_end()
    side.close()


def loads(addresses):
    """Loads of all offers into the same block numbers, backwards."""
    orders = StepOrders()
    for number, name in enumerate(NAMES):
        offer = Offer(
            key=KEY * (number + 1), ranks=[RankAddress(**each) for each in addresses],
            blocks=[blocks_of(number)], block_sizes=[32], num_tokens=32 * PER_REQUEST,
            prompt="d", remote_request_id="p", remote_engine_id="e",
        )  # fmt: skip
        orders.loads += load_of(offer, blocks_of(number)[::-1], name).loads
    return orders


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "how", "backend", "divided"),
    [
        (0, "kill", "tcp", "heads"),
        (1, "kill", "host", "heads"),
        (0, "freeze", "host", "heads"),
        (1, "freeze", "tcp", "heads"),
        (0, "kill", "host", "layers"),
        (1, "freeze", "tcp", "layers"),
    ],
)
@pytest.mark.expects_log(".*")
def test_a_consumer_knows_what_a_lost_rank_has_sent(lost, how, backend, divided):
    consumer = RankSide("consumer", head_size=HEAD_SIZE, transfer_backend=backend, **TIMES)
    with PeerGroup() as group:
        producers = [group.start(producing, backend, rank, divided) for rank in (0, 1)]
        addresses, shapes = zip(*(producer.receive() for producer in producers), strict=True)
        orders = loads(addresses)
        consumer.worker.carry_out(orders, is_idle=True)
        time.sleep(random.Random(f"{how}{backend}{lost}").uniform(0, 0.01))
        producers[lost].kill() if how == "kill" else producers[lost].freeze()
        failed, _ = consumer.until(loaded=NAMES, within_s=BOUND_S)
        assert producers[1 - lost].receive() == "sent"
        if how == "freeze":
            producers[lost].thaw()
        parts = [pattern(rank, shapes[rank]) for rank in (0, 1)]
        expected = np.concatenate(parts, axis=AXES[divided])
        for number in range(REQUESTS):
            src = blocks_of(number)
            for src_block, dst_block in zip(src, src[::-1], strict=True):
                if dst_block not in failed:
                    assert (consumer.kv[:, dst_block] == expected[:, src_block]).all()
    consumer.close()
