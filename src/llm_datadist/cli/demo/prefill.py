"""Prefill process: computes prompts, and serves their KV blocks or pushes them by layer."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from llm_datadist import (
    BlocksCacheKey,
    CacheTask,
    LayerSynchronizer,
    LLMRole,
    LLMStatusCode,
    TransferWithCacheKeyConfig,
)
from llm_datadist.cli.demo.damage import Damage
from llm_datadist.cli.demo.generation import greedy
from llm_datadist.cli.demo.instance import open_instance, register
from llm_datadist.cli.demo.messages import (
    DECODE_CLUSTER,
    PREFILL_CLUSTER,
    LayerDone,
    LayerSpan,
    Moved,
    Note,
    Prefilled,
    Ready,
    Release,
    Repair,
    Setup,
    Stop,
    Stopped,
    Submit,
)
from llm_datadist.cli.demo.model import Llama
from llm_datadist.cli.demo.paged_kv import BlockPool, PagedKvCache, blocks_for

if TYPE_CHECKING:
    from llm_datadist.cli.demo.channel import Channel, Inbox

# Covers the computing of a long prompt, which the transfer waits for layer by layer.
_PUSH_TIMEOUT_MS = 300_000
_WARM_UP_TOKENS = 8


class LayerGate(LayerSynchronizer):
    """Delays each layer of a layerwise transfer until the compute loop has filled it.

    The transfer's thread asks for a layer after it has transferred the previous one, so these
    times are also the times of the transfers.
    """

    def __init__(self, layers: int) -> None:
        self._filled = [threading.Event() for _ in range(layers)]
        self._aborted = False
        self._asked_ns: list[int] = []
        self._started_ns: list[int] = []

    def open(self, layer: int) -> None:
        """Release a layer whose keys and values are complete."""
        self._filled[layer].set()

    def abort(self) -> None:
        """End the transfer: no further layer will be filled."""
        self._aborted = True
        for event in self._filled:
            event.set()

    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        """Wait for a layer; called by the transfer, which sends it if this returns True."""
        self._asked_ns.append(time.monotonic_ns())
        timeout = None if timeout_in_millis is None else timeout_in_millis / 1000
        filled = self._filled[layer_index].wait(timeout)
        self._started_ns.append(time.monotonic_ns())
        return filled and not self._aborted

    def spans(self, end_ns: int) -> list[LayerSpan]:
        """Return start and end of each layer's transfer; the last one ended at `end_ns`."""
        ends = [*self._asked_ns[1:], end_ns]
        pairs = zip(self._started_ns, ends, strict=True)
        return [LayerSpan(layer, start, end) for layer, (start, end) in enumerate(pairs)]


class Push:
    """Waits for a layerwise transfer on a thread, to record its end during computation."""

    def __init__(self, task: CacheTask) -> None:
        self.end_ns: int = 0
        self._task = task
        self._status: LLMStatusCode | None = None
        self._thread = threading.Thread(target=self._wait, name="demo-push", daemon=True)
        self._thread.start()

    def wait(self, request: int) -> None:
        """Wait for the end.

        Raises:
            RuntimeError: The transfer failed.
        """
        self._thread.join()
        if self._status != LLMStatusCode.LLM_SUCCESS:
            raise RuntimeError(f"the layerwise transfer of request {request} ended {self._status}")

    def _wait(self) -> None:
        self._status = self._task.synchronize(_PUSH_TIMEOUT_MS)
        self.end_ns = time.monotonic_ns()


class PrefillWorker:
    """State of the prefill process."""

    def __init__(self, setup: Setup, channel: Channel) -> None:
        self._setup = setup
        self._channel = channel
        shape = setup.shape
        self._model = Llama(shape, setup.seed)
        self._kv = PagedKvCache(
            shape.layers,
            setup.num_blocks,
            setup.block_size,
            shape.kv_heads,
            shape.head_dim,
            own_pages=setup.fault_in is not None,
        )
        self._damage = Damage(self._kv, self._model)
        self._pool = BlockPool(range(setup.num_blocks), setup.seed + 1)
        self._blocks: dict[int, list[int]] = {}
        self._warm_up()
        self._instance = open_instance(LLMRole.PROMPT, PREFILL_CLUSTER, setup.backend, listen=True)
        self._cache = register(self._instance, self._kv)

    def announce(self) -> None:
        """Send the address on which this instance listens."""
        address = self._instance.listen_address
        assert address is not None
        self._channel.send(Ready(*address))

    def prefill(self, message: Submit) -> None:
        """Compute one prompt; in layerwise mode, push it at the same time."""
        request, prompt = message.request, message.prompt
        blocks = self._pool.take(blocks_for(len(prompt), self._setup.block_size))
        self._blocks[request] = blocks
        gate = LayerGate(self._setup.shape.layers)
        pushing = self._setup.mode == "layerwise"
        push = Push(self._push(gate, blocks, message.target_blocks)) if pushing else None
        started_ns = time.monotonic_ns()

        def layer_done(layer: int) -> None:
            nonlocal started_ns
            now = time.monotonic_ns()
            self._channel.send(LayerDone(request, LayerSpan(layer, started_ns, now)))
            started_ns = now

        try:
            table = np.asarray(blocks, np.intp)
            logits = self._model.prefill(prompt, self._kv, table, gate.open, layer_done)
        except BaseException:
            gate.abort()
            raise
        if push is not None:
            push.wait(request)
        if request == self._setup.fault_in:
            self._channel.send(self._damage.inject(request, prompt, blocks))
        self._channel.send(Prefilled(request, greedy(logits), blocks))
        if push is not None:
            spans = gate.spans(push.end_ns)
            num_bytes = len(blocks) * self._kv.bytes_per_block
            self._channel.send(Moved(request, num_bytes, blocks, message.target_blocks, spans))

    def repair(self, message: Repair) -> None:
        """Repair the lost blocks of a request."""
        repaired = self._damage.repair(message, self._instance.cache_manager)
        self._channel.send(repaired)

    def release(self, request: int) -> None:
        """Free a request's blocks, which have been transferred."""
        self._pool.give_back(self._blocks.pop(request))

    def close(self) -> None:
        """Close the instance; its peers detect it at once."""
        self._instance.finalize()

    def _push(self, gate: LayerGate, blocks: list[int], target_blocks: list[int]) -> CacheTask:
        layers = range(self._setup.shape.layers)
        config = TransferWithCacheKeyConfig(
            BlocksCacheKey(DECODE_CLUSTER), src_layer_range=layers, dst_layer_range=layers
        )
        return self._instance.cache_manager.transfer_cache_async(
            self._cache,
            gate,
            [config],
            src_block_indices=blocks,
            dst_block_indices=target_blocks,
        )

    def _warm_up(self) -> None:
        blocks = self._pool.take(blocks_for(_WARM_UP_TOKENS, self._setup.block_size))
        self._model.prefill([0] * _WARM_UP_TOKENS, self._kv, np.asarray(blocks, np.intp))
        self._pool.give_back(blocks)


def run_prefill(setup: Setup, inbox: Inbox, channel: Channel) -> None:
    """Execute messages until Stop."""
    worker = PrefillWorker(setup, channel)
    worker.announce()
    channel.send(Note(f"prefill: {setup.num_blocks} blocks registered"))
    while True:
        match inbox.get():
            case Submit() as message:
                worker.prefill(message)
            case Repair() as message:
                worker.repair(message)
            case Release(request):
                worker.release(request)
            case Stop():
                worker.close()
                channel.send(Stopped())
                return
            case message:
                raise TypeError(f"unexpected message {message!r}")
