"""Workers of the vLLM connector over numpy arrays in place of KV tensors."""

from __future__ import annotations

import mmap
import time

import numpy as np

from llm_datadist.integrations.vllm.kv_transfer_params import Offer
from llm_datadist.integrations.vllm.options import parse_extra_config
from llm_datadist.integrations.vllm.step_orders import Load, StepOrders
from llm_datadist.integrations.vllm.worker.worker import Worker
from support.vllm.objects import Tensor, kv_cache_config, vllm_config

LAYERS, BLOCKS, PAGE, BLOCK_SIZE = 3, 24, 4096, 32
KEY = 256


class WorkerSide:
    """A worker, and its memory `kv`."""

    worker: Worker
    kv: np.ndarray | None

    def until(self, *, sent=(), loaded=(), within_s=10.0, orders=None):
        """Step until these have been reported; returns the failed blocks and requests."""
        got_sent, got_loaded, blocks, requests = set(), set(), set(), set()
        deadline = time.monotonic() + within_s
        self.worker.carry_out(orders or StepOrders(), is_idle=True)
        while not (got_sent >= set(sent) and got_loaded >= set(loaded)):
            assert time.monotonic() < deadline, f"only {got_sent} and {got_loaded} in time"
            self.worker.carry_out(StepOrders(), is_idle=True)
            ended = self.worker.take_ended()
            got_sent |= ended[0]
            got_loaded |= ended[1]
            blocks |= self.worker.take_failed_blocks()
            requests |= self.worker.failed_request_ids
        assert (got_sent, got_loaded) == (set(sent), set(loaded))
        return blocks, requests

    def close(self):
        self.worker.close()
        self.kv = None


class Side(WorkerSide):
    """A worker whose blocks are not understood."""

    def __init__(self, role, *, groups=1, model="m", page=PAGE, **extra):
        self.memory = mmap.mmap(-1, LAYERS * BLOCKS * page)
        self.kv = np.frombuffer(self.memory, np.uint8).reshape(LAYERS, BLOCKS, 1, 4, page // 4)
        names = [f"layer{i}" for i in range(LAYERS)]
        grouped = [names[i::groups] for i in range(groups)]
        self.worker = Worker(
            parse_extra_config({"transfer_timeout_ms": 2000, "lease_ms": 2500, **extra}),
            {name: Tensor(self.kv[i]) for i, name in enumerate(names)},
            kv_cache_config(grouped, BLOCKS, BLOCK_SIZE),
            vllm_config(model=model),
            version="0.32.0",
            is_producer=role == "producer",
            is_consumer=role == "consumer",
        )


def offer_of(producer, blocks, key=KEY, groups=1):
    return Offer(
        key=key,
        ranks=[producer.worker.address],
        blocks=[list(blocks)] * groups,
        block_sizes=[BLOCK_SIZE] * groups,
        num_tokens=BLOCK_SIZE * len(blocks),
        prompt="d",
        remote_request_id="p",
        remote_engine_id="e",
    )


def offered(producer, blocks, request_id="p", key=KEY):
    producer.worker.carry_out(StepOrders(publish={request_id: key}), is_idle=False)
    producer.worker.carry_out(StepOrders(hold=[request_id]), is_idle=False)
    return offer_of(producer, blocks, key)


def load_of(offer, dst_blocks, request_id="d", unavailable=()):
    groups = len(offer.blocks)
    return StepOrders(
        loads=[Load(request_id, offer, offer.blocks, [list(dst_blocks)] * groups, [*unavailable])]
    )
