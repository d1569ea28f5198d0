"""Engines of the vLLM connector with several workers, over numpy arrays that hold a model's KV."""

from __future__ import annotations

import mmap

import numpy as np

from llm_datadist.integrations.vllm.options import parse_extra_config
from llm_datadist.integrations.vllm.scheduler.pull import PullScheduler
from llm_datadist.integrations.vllm.step_orders import StepOrders
from llm_datadist.integrations.vllm.worker.worker import Worker
from llm_datadist.layouts import heads_of_rank
from support.vllm.objects import (
    FullAttentionSpec,
    MLAAttentionSpec,
    Tensor,
    attention_layer,
    kv_cache_config,
    request,
    vllm_config,
)
from support.vllm.worker_sides import WorkerSide

LAYERS, BLOCKS, HEADS, HEAD_SIZE = 3, 24, 4, 8
WHOLE = (range(LAYERS),)
"""Stages of an engine without pipeline parallelism."""


def layer_name(number):
    """Name of a layer in vLLM."""
    return f"model.layers.{number}.self_attn.attn"


class RankSide(WorkerSide):
    """One worker of an engine with CPU attention, or with latents.

    Attributes:
        kv: Its memory: (layer, block, head, K or V, token, element); a latent has one head and one
            plane.
        heads: Those of the model that it holds, a slice.
        layers: The same.
    """

    def __init__(
        self, role, tp_size=1, rank=0, *, latent=False, kv_heads=HEADS, head_size=HEAD_SIZE,
        block_size=32, dtype="torch.float32", backend=None, isa="vec", stages=WHOLE,
        name=layer_name, groups=1, **extra,
    ):  # fmt: skip
        stage, tp_rank = divmod(rank, tp_size)
        layers = stages[stage]
        heads = range(1) if latent else heads_of_rank(kv_heads, tp_size, tp_rank)
        self.heads = slice(heads.start, heads.stop)
        self.layers = slice(layers.start, layers.stop)
        held, planes = len(heads), 1 if latent else 2
        shape = (len(layers), BLOCKS, held, planes, block_size, head_size)
        self.memory = mmap.mmap(-1, 4 * int(np.prod(shape)))
        self.kv = np.frombuffer(self.memory, np.uint32).reshape(shape)
        self.names = names = [name(number) for number in layers]
        seen_by_vllm = (len(layers), BLOCKS, held, block_size, planes * head_size)
        spec = {"num_kv_heads": held, "head_size": head_size, "dtype": dtype}
        kind = MLAAttentionSpec if latent else FullAttentionSpec
        backend = backend or ("CPU_MLA" if latent else "CPU_ATTN")
        layer = attention_layer(backend, None if latent else isa)
        self.worker = Worker(
            parse_extra_config({"transfer_timeout_ms": 2000, "lease_ms": 2500, **extra}),
            dict(zip(names, map(Tensor, self.kv.reshape(seen_by_vllm)), strict=True)),
            kv_cache_config(
                [names[first::groups] for first in range(groups)], BLOCKS, block_size, kind, **spec
            ),
            vllm_config(
                tp_size=tp_size,
                pp_size=len(stages),
                rank=rank,
                kv_heads=kv_heads,
                dtype=dtype,
                attention=dict.fromkeys(names, layer),
            ),
            version="0.32.0",
            is_producer=role == "producer",
            is_consumer=role == "consumer",
        )


class RankEngine:
    """All workers of an engine, and the scheduler side of pull mode.

    Several KV cache groups have equal block numbers.
    """

    def __init__(self, role, tp_size=1, *, block_size=32, stages=WHOLE, groups=1, **options):
        self.block_size = block_size
        self.groups = groups
        self.spans = tuple((layers.start, layers.stop) for layers in stages)
        options |= {"block_size": block_size, "stages": stages, "groups": groups}
        self.sides = [
            RankSide(role, tp_size, rank, **options) for rank in range(len(stages) * tp_size)
        ]
        self._orders = StepOrders()
        self.last = StepOrders()
        self.scheduler = PullScheduler(
            self._orders, "engine", [block_size] * groups, tp_size,
            is_producer=role == "producer", is_consumer=role == "consumer",
        )  # fmt: skip
        self.scheduler.ranks = [side.worker.address for side in self.sides]

    def close(self):
        for side in self.sides:
            side.close()

    def put(self, model, blocks):
        """Write every worker's layers and heads of a model's tokens into blocks."""
        for side in self.sides:
            for token in range(model.shape[3]):
                self._at(side, blocks, token)[:] = model[side.layers, side.heads, :, token]

    def tokens(self, rank, blocks, count):
        """What a worker has of the first `count` tokens in blocks, as a model of its layers."""
        side = self.sides[rank]
        return np.stack([self._at(side, blocks, token) for token in range(count)], axis=3)

    def _at(self, side, blocks, token):
        return side.kv[:, blocks[token // self.block_size], :, :, token % self.block_size]

    def offer(self, num_tokens, blocks):
        """Prefill a prompt into blocks; returns what the producer's answer has."""
        one = request("p", range(num_tokens), {"do_remote_decode": True})
        self.scheduler.allocated(one, self._lists(blocks), 0)
        self.carry_out()
        _, params = self.scheduler.finished(one, self._lists(blocks))
        self.carry_out()
        return params

    def load(self, num_tokens, params, blocks=(), num_local_tokens=0, lists=None):
        """Order all workers to load a prompt into blocks, but for its last token.

        `lists` has the blocks of each KV cache group if they are not equal.
        """
        self._loading = request("d", range(num_tokens), params)
        num_external = self.scheduler.num_new_matched_tokens(self._loading, num_local_tokens)
        self.scheduler.allocated(self._loading, lists or self._lists(blocks), num_external)
        self.carry_out()
        return num_external

    def _lists(self, blocks):
        return tuple([list(blocks)] * self.groups)

    def carry_out(self):
        """Give the scheduler's orders to all workers; `last` has them afterwards."""
        self.last = self._orders.take()
        for side in self.sides:
            side.worker.carry_out(self.last, is_idle=False)

    def loaded(self):
        """Wait until all workers have loaded; returns the blocks that each lacks."""
        failed = self.all_loaded()
        self.forget()
        return failed

    def forget(self):
        """End the loaded request on the scheduler side, so that it can come again."""
        self.scheduler.loaded({"d"})
        self.scheduler.finished(self._loading, ([],))

    def all_loaded(self):
        """As `loaded`, for requests that the scheduler side does not know."""
        return [side.until(loaded=["d"])[0] for side in self.sides]

    def sent(self, within_s=2):
        """Wait until every worker has reported its blocks once."""
        for side in self.sides:
            side.until(sent=["p"], within_s=within_s)


def model_of(num_tokens, *, latent=False, kv_heads=HEADS, head_size=HEAD_SIZE):
    """The KV of a prompt: (layer, head, K or V, token, element), different everywhere, never 0."""
    heads, planes = (1, 1) if latent else (kv_heads, 2)
    shape = (LAYERS, heads, planes, num_tokens, head_size)
    values = np.random.default_rng(4).permutation(int(np.prod(shape)))
    return values.astype(np.uint32).reshape(shape) + np.uint32(1)
