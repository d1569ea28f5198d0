"""Fault injection of --inject-fault: makes pages of a request inaccessible, and repairs them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from llm_datadist import CacheManager, MemInfo, Memtype
from llm_datadist.cli.demo import pages
from llm_datadist.cli.demo.messages import FaultInjected, LostRange, Repair, Repaired

if TYPE_CHECKING:
    from llm_datadist.cli.demo.model import Llama
    from llm_datadist.cli.demo.paged_kv import PagedKvCache


class Damage:
    """Injects and repairs memory faults of one KV cache.

    Args:
        kv: The cache, each tensor on pages of its own.
        model: Recomputes lost blocks.
    """

    def __init__(self, kv: PagedKvCache, model: Llama) -> None:
        self._kv = kv
        self._model = model
        self._prompts: dict[int, tuple[list[int], list[int]]] = {}

    def inject(self, request: int, prompt: list[int], blocks: list[int]) -> FaultInjected:
        """Make two blocks inaccessible: keys of the middle layer and values of the last one."""
        self._prompts[request] = prompt, blocks
        tensors = len(self._kv.tensors)
        lost = [
            self._range(2 * (tensors // 4), blocks[len(blocks) // 2]),
            self._range(tensors - 1, blocks[len(blocks) // 3]),
        ]
        pages.protect(lost[0].addr, lost[0].size)
        pages.lose(lost[1].addr, lost[1].size)
        return FaultInjected(
            request, lost, ["mprotect: no access", "mmap: pages replaced, no access"]
        )

    def repair(self, message: Repair, manager: CacheManager) -> Repaired:
        """Map new pages, remap them in the library, and recompute the lost blocks in order."""
        for lost in message.lost:
            pages.renew(lost.addr, lost.size)
        began = time.monotonic_ns()
        manager.remap_registered_memory(
            [MemInfo(Memtype.MEM_TYPE_DEVICE, lost.addr, lost.size) for lost in message.lost]
        )
        remapped = time.monotonic_ns()
        prompt, blocks = self._prompts.pop(message.request)
        size = self._kv.block_size
        tokens = 0
        for place in sorted({blocks.index(lost.block) for lost in message.lost}):
            first, last = place * size, min((place + 1) * size, len(prompt))
            self._model.recompute(prompt[:last], first, self._kv, np.asarray(blocks, np.intp))
            tokens += last - first
        done = time.monotonic_ns()
        return Repaired(message.request, (remapped - began) / 1e6, (done - remapped) / 1e6, tokens)

    def _range(self, tensor: int, block: int) -> LostRange:
        return LostRange(tensor, block, *self._kv.address_of(tensor, block))
