"""The decode process: receives KV blocks, under block ids of its own, and decodes a batch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from llm_datadist import BlocksCacheKey, LLMClusterInfo, LLMRole, LLMStatusCode
from llm_datadist.cli.demo.generation import Generation, decode_step
from llm_datadist.cli.demo.instance import open_instance, register
from llm_datadist.cli.demo.messages import (
    ALL_LAYERS,
    DECODE_CLUSTER,
    PREFILL_CLUSTER,
    Begin,
    Finished,
    LayerSpan,
    Linked,
    LinkTo,
    Message,
    Moved,
    Note,
    Ready,
    Reserve,
    Reserved,
    Setup,
    Stop,
    Stopped,
    Token,
)
from llm_datadist.cli.demo.model import Llama
from llm_datadist.cli.demo.paged_kv import BlockPool, PagedKvCache, blocks_for

if TYPE_CHECKING:
    from llm_datadist.cli.demo.channel import Channel, Inbox

_LINK_TIMEOUT_MS = 10_000


class DecodeWorker:
    """State of the decode process.

    Its first blocks, as many as the prefill process has in all, hold noise that stands for the
    requests of others: so every block moves to another id, and a transfer that strayed would show.
    """

    def __init__(self, setup: Setup, channel: Channel) -> None:
        self._setup = setup
        self._channel = channel
        shape = setup.shape
        self._model = Llama(shape, setup.seed)
        self._kv = PagedKvCache(
            shape.layers, setup.num_blocks, setup.block_size, shape.kv_heads, shape.head_dim
        )
        self._noise = np.random.default_rng(setup.seed + 2)
        self._residents = range(setup.resident_blocks)
        self._kv.fill(self._residents, self._noise)
        self._resident_sums = self._kv.checksums(self._residents)
        self._pool = BlockPool(range(setup.resident_blocks, setup.num_blocks), setup.seed + 2)
        self._reserved: dict[int, tuple[int, list[int]]] = {}
        self._running: dict[int, Generation] = {}
        self._instance = open_instance(LLMRole.DECODER, DECODE_CLUSTER, setup.backend, listen=False)
        self._cache = register(self._instance, self._kv)

    @property
    def busy(self) -> bool:
        """Whether some request is being decoded."""
        return bool(self._running)

    def handle(self, message: Message) -> None:
        """Do what the parent asks."""
        match message:
            case LinkTo(ip, port):
                self._link(ip, port)
            case Reserve(request, prompt_tokens):
                total = prompt_tokens + self._setup.max_new_tokens
                blocks = self._pool.take(blocks_for(total, self._setup.block_size))
                self._reserved[request] = (prompt_tokens, blocks)
                moved = blocks_for(prompt_tokens, self._setup.block_size)
                self._channel.send(Reserved(request, blocks[:moved]))
            case Begin():
                self._begin(message)
            case _:
                raise TypeError(f"unexpected message {message!r}")

    def step(self) -> None:
        """Decode one token of every running request."""
        tokens = decode_step(self._model, self._kv, self._running, self._setup.slots)
        now = time.monotonic_ns()
        for request, token in tokens.items():
            self._channel.send(Token(request, token, now))
            self._finish_if_done(request)

    def close(self) -> bool:
        """Close the instance; True when no block of anybody else has changed."""
        self._instance.finalize()
        return self._kv.checksums(self._residents) == self._resident_sums

    def _link(self, ip: str, port: int) -> None:
        cluster = LLMClusterInfo()
        cluster.remote_cluster_id = PREFILL_CLUSTER
        cluster.append_local_ip_info(ip, 0)
        cluster.append_remote_ip_info(ip, port)
        status, each = self._instance.link_clusters([cluster], _LINK_TIMEOUT_MS)
        if status != LLMStatusCode.LLM_SUCCESS:
            raise RuntimeError(f"link_clusters to {ip}:{port} ended {each[0]}")
        description = msgspec.to_builtins(
            self._instance.describe_link(PREFILL_CLUSTER), enc_hook=str, str_keys=True
        )
        # One backend per kind of memory; the caches here are host memory.
        self._channel.send(Linked(description["backend"]["host"], description))

    def _begin(self, message: Begin) -> None:
        request = message.request
        prompt_tokens, blocks = self._reserved.pop(request)
        arrived = blocks[: blocks_for(prompt_tokens, self._setup.block_size)]
        if self._setup.mode == "pull":
            self._pull(request, message.source_blocks, arrived)
        if self._setup.corrupt_block and request == 0:
            spoiled = arrived[len(arrived) // 2]
            self._kv.fill([spoiled], self._noise)
            self._channel.send(Note(f"decode: block {spoiled} of request {request} spoiled"))
        table = np.asarray(blocks, np.intp)
        self._running[request] = Generation(prompt_tokens, message.first_token, table)
        self._channel.send(Token(request, message.first_token, time.monotonic_ns()))
        self._finish_if_done(request)

    def _pull(self, request: int, source_blocks: list[int], target_blocks: list[int]) -> None:
        start = time.monotonic_ns()
        self._instance.cache_manager.pull_blocks(
            BlocksCacheKey(PREFILL_CLUSTER), self._cache, source_blocks, target_blocks
        )
        span = LayerSpan(ALL_LAYERS, start, time.monotonic_ns())
        num_bytes = len(target_blocks) * self._kv.bytes_per_block
        self._channel.send(Moved(request, num_bytes, source_blocks, target_blocks, [span]))

    def _finish_if_done(self, request: int) -> None:
        generation = self._running[request]
        if len(generation.tokens) < self._setup.max_new_tokens:
            return
        del self._running[request]
        self._pool.give_back(generation.table.tolist())
        self._channel.send(Finished(request, generation.tokens, generation.digest))


def run_decode(setup: Setup, inbox: Inbox, channel: Channel) -> None:
    """Serve the parent until it says Stop; decode whenever nothing else is to be done."""
    worker = DecodeWorker(setup, channel)
    channel.send(Ready())
    while True:
        message = inbox.get_nowait() if worker.busy else inbox.get()
        if isinstance(message, Stop):
            channel.send(Stopped(residents_intact=worker.close()))
            return
        if message is not None:
            worker.handle(message)
        elif worker.busy:
            worker.step()
