"""Memory at fault: which slots or blocks it is, and the marks that keep transfers off own memory.

A mark belongs to every cache over the range and goes with it, or with a remap. Own memory gets its
marks from own transfers that failed on it, and from peers whose transfers did: they send a notice,
because memory that a peer reads by itself fails without its owner's knowledge.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from llm_datadist._backends.outcomes import ANY_ENTRY
from llm_datadist._engine.messages import Faulted, encode
from llm_datadist._errors import Fault, LLMException, LLMStatusCode, fail

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_datadist._backends.outcomes import Ref
    from llm_datadist._engine.engine import Engine
    from llm_datadist._links import Link
    from llm_datadist._plan import Layout, Plan
    from llm_datadist._plan.layout import Piece
    from llm_datadist._registry import LocalCache, RemoteCache

logger = logging.getLogger("llm_datadist")

_MOST_PIECES = 4096
"""Slots or blocks of one descriptor that are tried one by one when it fails."""

_MOST_REPORTED = 1024


def pieces_at_fault(
    layout: Layout, addr: int, size: int, fails: Callable[[int, int], bool]
) -> list[Piece]:
    """Find the slots or blocks at fault in a descriptor that failed.

    Args:
        layout: The cache on the side at fault.
        addr, size: The descriptor on that side.
        fails: Transfers a part of the descriptor (offset, size) alone; whether that fails too.
    """
    pieces = list(islice(layout.locate(addr, size), _MOST_PIECES))
    if len(pieces) > 1:
        found = [piece for piece in pieces if fails(piece.addr - addr, piece.size)]
        return found or pieces[:1]
    return pieces


def fault_of(cluster_id: int, cache: LocalCache | RemoteCache, piece: Piece) -> Fault:
    """Make the public record of a piece of a cache."""
    return Fault(
        cluster_id=cluster_id,
        cache_id=cache.cache_id,
        tensor_index=piece.tensor_index,
        block=piece.unit_index if cache.is_blocks else None,
        slot=None if cache.is_blocks else piece.unit_index,
        addr=piece.addr,
        size=piece.size,
    )


def described(fault: Fault) -> str:
    """Name the memory of a fault in an error text."""
    where = f"{fault.size} bytes at {fault.addr:#x}"
    if fault.cache_id is None:
        return where
    unit = f"slot {fault.slot}" if fault.block is None else f"block {fault.block}"
    return f"cache {fault.cache_id}, tensor {fault.tensor_index}, {unit} ({where})"


class Faults:
    """The marks on the memory of one instance. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._registry = engine.registry

    def check(
        self, operation: str, cache: LocalCache, plan: Plan, peer: int | None, *, local: bool
    ) -> None:
        """Refuse a transfer that touches a marked range of an own cache.

        Args:
            operation: Public name of the call.
            cache: The own cache.
            plan: What is to be moved.
            peer: The other side, None for a copy.
            local: Whether the cache is the plan's local side.

        Raises:
            LLMException: LLM_DEVICE_MEM_ERROR with the ranges.
        """
        marks = cache.faulted
        if not marks:
            return
        begin = plan.local if local else plan.remote
        end = begin + plan.length
        touched = [
            fault_of(self._engine.cluster_id, cache, piece)
            for piece in marks
            if ((begin < np.uint64(piece.addr + piece.size)) & (end > np.uint64(piece.addr))).any()
        ]
        if touched:
            raise fail(
                LLMStatusCode.LLM_DEVICE_MEM_ERROR,
                operation,
                f"own memory was found at fault before: {described(touched[0])}",
                "repair it, then call remap_registered_memory",
                cluster_id=peer,
                faults=touched,
            )

    def mark(self, cache: LocalCache, ref: Ref, faults: Sequence[Fault]) -> None:
        """Remember own memory that failed in a transfer that used the cache's entry `ref`."""
        for fault in faults:
            self._mark(cache, ref, fault.addr, fault.size)

    def clear(self, addr: int, size: int) -> None:
        """Forget the marks that touch a range."""
        self._registry.clear_faulted(addr, size)

    def ranges(self) -> tuple[Fault, ...]:
        """Return what is marked now."""
        return tuple(
            fault_of(self._engine.cluster_id, cache, piece)
            for cache, piece in self._registry.faulted()
        )

    def report(self, link: Link, entry: Ref, faults: Sequence[Fault]) -> None:
        """Tell the owner of a cache that its memory failed; nothing happens when it cannot be told.

        Args:
            link: To the owner.
            entry: The cache as the transfer knew it.
            faults: What failed.
        """
        ranges = tuple((fault.addr, fault.size) for fault in faults[:_MOST_REPORTED])
        if ranges and entry != ANY_ENTRY:
            with suppress(LLMException):
                self._engine.links.notify(link, encode(Faulted(entry, ranges)))

    def receive(self, link: Link, message: Faulted) -> None:
        """Take a peer's notice; only memory that peers may touch gets a mark by it."""
        for addr, size in message.ranges[:_MOST_REPORTED]:
            caches = self._registry.overlapping(addr, size)
            cache = next((c for c in caches if c.accessible and c.ref == message.entry), None)
            if cache is None:
                continue
            marked = [
                self._mark(cache, message.entry, piece.addr, piece.size)
                for piece in cache.layout.locate(addr, size)
            ]
            if any(marked):
                logger.warning(
                    "cluster %d met a fault in own memory, %d bytes at %#x; repair it and call "
                    "remap_registered_memory",
                    link.cluster_id,
                    size,
                    addr,
                )

    def _mark(self, cache: LocalCache, ref: Ref, addr: int, size: int) -> bool:
        """Mark a range; False if it was marked, or what failed was the memory before a remap."""
        marked = self._registry.mark_faulted(addr, size)
        if cache.ref != ref:
            self.clear(addr, size)
            return False
        return marked
