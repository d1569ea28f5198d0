"""Decode process: receives KV blocks under its own block ids, and decodes a batch."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from llm_datadist import BlocksCacheKey, LLMClusterInfo, LLMException, LLMRole, LLMStatusCode
from llm_datadist.cli.demo.generation import Generation, decode_step
from llm_datadist.cli.demo.instance import open_instance, register
from llm_datadist.cli.demo.messages import (
    ALL_LAYERS,
    DECODE_CLUSTER,
    PREFILL_CLUSTER,
    FaultDetected,
    Finished,
    LayerSpan,
    Linked,
    LinkTo,
    LostRange,
    Message,
    Moved,
    Note,
    Ready,
    Reserve,
    Reserved,
    Resume,
    Resumed,
    Setup,
    StartDecode,
    Stop,
    Stopped,
    Token,
)
from llm_datadist.cli.demo.model import Llama
from llm_datadist.cli.demo.paged_kv import BlockPool, PagedKvCache, blocks_for

if TYPE_CHECKING:
    from llm_datadist.cli.demo.channel import Channel, Inbox

_LINK_TIMEOUT_MS = 10_000


@dataclass(slots=True)
class PendingPull:
    """A request whose blocks are being pulled, possibly again after a memory fault."""

    message: StartDecode
    prompt_tokens: int
    blocks: list[int]
    arrived: list[int]
    spans: list[LayerSpan] = field(default_factory=list)
    lost: list[LostRange] = field(default_factory=list)


class DecodeWorker:
    """State of the decode process.

    Its first blocks, as many as the prefill process has in all, hold noise in place of other
    requests. So every block moves to another id, and stray writes are detected.
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
        self._pending: dict[int, PendingPull] = {}
        self._instance = open_instance(LLMRole.DECODER, DECODE_CLUSTER, setup.backend, listen=False)
        self._cache = register(self._instance, self._kv)

    @property
    def busy(self) -> bool:
        """Whether some request is being decoded."""
        return bool(self._running)

    def handle(self, message: Message) -> None:
        """Execute a message of the router."""
        match message:
            case LinkTo(ip, port):
                self._link(ip, port)
            case Reserve(request, prompt_tokens):
                total = prompt_tokens + self._setup.max_new_tokens
                blocks = self._pool.take(blocks_for(total, self._setup.block_size))
                self._reserved[request] = (prompt_tokens, blocks)
                moved = blocks_for(prompt_tokens, self._setup.block_size)
                self._channel.send(Reserved(request, blocks[:moved]))
            case StartDecode():
                self._begin(message)
            case Resume(request):
                self._resume(request)
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
        """Close the instance; return whether no block of other requests has changed."""
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
        # One backend per kind of memory; these caches are host memory.
        self._channel.send(Linked(description["backend"]["host"], description))

    def _begin(self, message: StartDecode) -> None:
        request = message.request
        prompt_tokens, blocks = self._reserved.pop(request)
        arrived = blocks[: blocks_for(prompt_tokens, self._setup.block_size)]
        if self._setup.mode == "pull":
            self._pending[request] = PendingPull(message, prompt_tokens, blocks, arrived)
            if not self._pull(request, message.source_blocks, arrived):
                return
        self._start(message, prompt_tokens, blocks, arrived)

    def _start(
        self, message: StartDecode, prompt_tokens: int, blocks: list[int], arrived: list[int]
    ) -> None:
        request = message.request
        if self._setup.corrupt_block and request == 0:
            corrupted = arrived[len(arrived) // 2]
            self._kv.fill([corrupted], self._noise)
            self._channel.send(Note(f"decode: block {corrupted} of request {request} corrupted"))
        table = np.asarray(blocks, np.intp)
        self._running[request] = Generation(prompt_tokens, message.first_token, table)
        self._channel.send(Token(request, message.first_token, time.monotonic_ns()))
        self._finish_if_done(request)

    def _pull(self, request: int, source_blocks: list[int], target_blocks: list[int]) -> bool:
        """Pull blocks; report a memory fault of the peer to the router and return False."""
        start = time.monotonic_ns()
        pending = self._pending[request]
        try:
            self._instance.cache_manager.pull_blocks(
                BlocksCacheKey(PREFILL_CLUSTER), self._cache, source_blocks, target_blocks
            )
        except LLMException as error:
            if error.status_code != LLMStatusCode.LLM_SUSPECT_REMOTE_ERROR:
                raise
            pending.lost = [
                LostRange(fault.tensor_index or 0, fault.block or 0, fault.addr, fault.size)
                for fault in error.faults
            ]
            now = time.monotonic_ns()
            pending.spans.append(LayerSpan(ALL_LAYERS, start, now))
            status = error.status_code.name
            self._channel.send(FaultDetected(request, status, str(error), pending.lost, now))
            return False
        pending.spans.append(LayerSpan(ALL_LAYERS, start, time.monotonic_ns()))
        del self._pending[request]
        whole = pending.message.source_blocks
        num_bytes = len(whole) * self._kv.bytes_per_block
        self._channel.send(Moved(request, num_bytes, whole, pending.arrived, pending.spans))
        return True

    def _resume(self, request: int) -> None:
        """Pull only the lost blocks, and continue the request."""
        pending = self._pending[request]
        lost = sorted({one.block for one in pending.lost})
        target_of = dict(zip(pending.message.source_blocks, pending.arrived, strict=True))
        start = time.monotonic_ns()
        if not self._pull(request, lost, [target_of[block] for block in lost]):
            return
        now = time.monotonic_ns()
        self._channel.send(Resumed(request, len(lost), (now - start) / 1e6, now))
        self._start(pending.message, pending.prompt_tokens, pending.blocks, pending.arrived)

    def _finish_if_done(self, request: int) -> None:
        generation = self._running[request]
        if len(generation.tokens) < self._setup.max_new_tokens:
            return
        del self._running[request]
        self._pool.give_back(generation.table.tolist())
        self._channel.send(Finished(request, generation.tokens, generation.digest))


def run_decode(setup: Setup, inbox: Inbox, channel: Channel) -> None:
    """Execute messages until Stop; decode while there is none."""
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
