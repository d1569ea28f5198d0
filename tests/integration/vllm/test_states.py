"""Engines of a model with states: the state before the prompt's last token moves with its KV."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from llm_datadist.integrations.vllm.options import parse_extra_config
from llm_datadist.integrations.vllm.scheduler.pull import PullScheduler
from llm_datadist.integrations.vllm.states import state_groups_of
from llm_datadist.integrations.vllm.step_orders import StepOrders
from llm_datadist.integrations.vllm.worker.worker import Worker
from support.vllm.objects import MambaSpec, Tensor, kv_cache_config, request, vllm_config
from support.vllm.worker_sides import WorkerSide

BLOCKS, BLOCK, PAGE = 24, 32, 4096
TOKENS = 100
SRC, DST = ([3, 7, 5, 11], [0, 0, 0, 2]), ([10, 9, 4, 6], [0, 0, 0, 8])


class StateSide(WorkerSide):
    """An engine of one worker: its scheduler side, and pages over which its groups share blocks.

    Attributes:
        kv: (layer, block, byte); the groups have a layer each, or one group has both.
    """

    def __init__(self, role, *, is_pure=False, spec=None, **extra):
        self.memory = mmap.mmap(-1, 2 * BLOCKS * PAGE)
        self.kv = np.frombuffer(self.memory, np.uint8).reshape(2, BLOCKS, PAGE)
        views = [self._states(0), Tensor(self.kv[1].reshape(BLOCKS, 1, 4, PAGE // 4))]
        config = kv_cache_config([["tokens"], ["states"]], BLOCKS, BLOCK)
        config.kv_cache_groups[1].kv_cache_spec = MambaSpec.one(
            block_size=BLOCK, page_size_bytes=PAGE, **spec or {}
        )
        if is_pure:
            del config.kv_cache_groups[0]
        roles = {"is_producer": role == "producer", "is_consumer": role == "consumer"}
        self.worker = Worker(
            parse_extra_config({"transfer_timeout_ms": 2000, "lease_ms": 2500, **extra}),
            dict(zip(("states", "tokens"), views, strict=True)),
            config, vllm_config(), version="0.32.0", **roles,
        )  # fmt: skip
        self.groups = slice(1, 2) if is_pure else slice(0, 2)
        sizes = [BLOCK] * len(config.kv_cache_groups)
        self.scheduler = PullScheduler(
            StepOrders(), "engine", sizes, 1, **roles, state_groups=state_groups_of(config)
        )
        self.scheduler.ranks = [self.worker.address]

    def _states(self, layer):
        page = self.kv[layer]
        return [Tensor(page[:, :12].reshape(BLOCKS, 3, 4)), Tensor(page[:, 12:16])]

    def carry_out(self):
        self.worker.carry_out(self.scheduler._orders.take(), is_idle=False)

    def offer(self):
        """Prefill a prompt; returns what the producer's answer has."""
        one = request("p", range(TOKENS), {"do_remote_decode": True})
        self.scheduler.arrived(one)
        one.num_computed_tokens = one.num_prompt_tokens
        self.scheduler.allocated(one, SRC[self.groups], 0)
        self.carry_out()
        _, params = self.scheduler.finished(one, SRC[self.groups])
        self.carry_out()
        return params

    def load(self, params):
        """Load a prompt; returns the failed blocks and requests."""
        one = request("d", range(TOKENS), params)
        self.scheduler.arrived(one)
        num_external = self.scheduler.num_new_matched_tokens(one, 0)
        assert num_external == TOKENS - 1
        self.scheduler.allocated(one, DST[self.groups], num_external)
        return self.until(loaded=["d"], orders=self.scheduler._orders.take())


@pytest.fixture
def make():
    """Makes engines, and closes them."""
    made = []

    def make(*arguments, **options):
        made.append(StateSide(*arguments, **options))
        return made[-1]

    yield make
    for side in made:
        side.close()


def filled(side):
    side.kv[:] = np.random.default_rng(7).integers(1, 256, side.kv.shape, np.uint8)
    return side


@pytest.mark.parametrize("is_pure", [False, True])
@pytest.mark.parametrize("extra", [{}, {"transfer_backend": "tcp", "checksum": "crc32c"}])
def test_the_last_state_moves_with_the_kv_and_nothing_else(make, is_pure, extra):
    producer = filled(make("producer", is_pure=is_pure, **extra))
    consumer = make("consumer", is_pure=is_pure, **extra)
    assert consumer.load(producer.offer()) == (set(), set())
    expected = np.zeros_like(consumer.kv)
    expected[0, 8] = producer.kv[0, 2]
    if not is_pure:
        expected[1, DST[0]] = producer.kv[1, SRC[0]]
    assert (consumer.kv == expected).all()
    producer.until(sent=["p"])


@pytest.mark.expects_log("will be recomputed")
@pytest.mark.parametrize("is_pure", [False, True])
def test_a_prompt_whose_state_does_not_come_is_computed_from_its_start(make, is_pure):
    """A request fails, not blocks: with these, vLLM would go on without a state."""
    producer, consumer = make("producer", is_pure=is_pure), make("consumer", is_pure=is_pure)
    params = producer.offer()
    assert consumer.load({**params, "key": params["key"] + 256}) == (set(), {"d"})
    assert not consumer.kv.any()


@pytest.mark.expects_log("will be recomputed")
@pytest.mark.parametrize(
    "spec",
    [
        {"dtypes": ("float32", "float16")},
        {"mamba_cache_mode": "none"},
        {"shapes": ((4, 3), (2, 2))},
        {"mamba_type": "GDN"},
    ],
    ids=str,
)
def test_states_of_another_kind_are_not_used(make, caplog, spec):
    producer, consumer = filled(make("producer")), make("consumer", spec=spec)
    assert consumer.load(producer.offer()) == (set(), {"d"})
    assert "KV cache groups: producer 'FullAttentionSpec, MambaSpec MAMBA2" in caplog.text
    assert not consumer.kv.any()


def test_push_mode_is_refused(make):
    with pytest.raises(ValueError, match='states replaced, before they are sent: write "mode"'):
        make("producer", mode="push")
