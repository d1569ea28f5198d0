"""Fault marks on local memory: transfers do not touch marked slots and blocks.

A mark belongs to every cache that covers the range, and ends with it or with a remap. It comes from
a local transfer that failed on the memory, or from a probe after a peer's notice (`fault_notices`).
The owner sends its marks to all peers, so that their transfers fail at once and do not touch the
memory. The marks that a peer sends apply to that peer's caches only.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from llm_datadist._backends.outcomes import ANY_ENTRY
from llm_datadist._engine.link.messages import MAX_RANGES, Faulted, Marked, encode
from llm_datadist._engine.memory.fault_notices import MAX_BYTES, FaultNotices
from llm_datadist._errors import Fault, LLMException, LLMStatusCode, fail

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_datadist._engine.instance import Instance
    from llm_datadist._engine.memory.containment import BadRange
    from llm_datadist._links import Link
    from llm_datadist._plan import Plan
    from llm_datadist._plan.layout import Piece
    from llm_datadist._registry import LocalCache, RemoteCache
    from llm_datadist._types.refs import Ref

logger = logging.getLogger("llm_datadist")


def fault_of(cluster_id: int, cache: LocalCache | RemoteCache, piece: Piece) -> Fault:
    """Return the public record of a piece of a cache at fault."""
    return Fault(
        cluster_id=cluster_id,
        cache_id=cache.cache_id,
        tensor_index=piece.tensor_index,
        block=piece.unit_index if cache.is_blocks else None,
        slot=None if cache.is_blocks else piece.unit_index,
        addr=piece.addr,
        size=piece.size,
    )


def fault_at(cluster_id: int, cache: LocalCache | RemoteCache | None, bad: BadRange) -> Fault:
    """Return the public record of a `BadRange`; `cache` is the cache on its side."""
    if cache is None or bad.piece is None:
        return Fault(
            cluster_id=cluster_id, cache_id=None, tensor_index=None, addr=bad.addr, size=bad.size
        )
    return fault_of(cluster_id, cache, bad.piece)


NOT_ACCESSIBLE = "memory was freed or unmapped while registered, or is defective"
"""Follows "local" or "the peer's" in every text about memory at fault; the usual cause is first."""

REPAIR = "map it again or repair it, then call remap_registered_memory"
"""Remedy at its owner."""


def described(faults: Sequence[Fault]) -> str:
    """Return an error text that names the first fault and counts the others."""
    if not faults:
        return "the address is unknown"
    more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
    return _described(faults[0]) + more


def _described(fault: Fault) -> str:
    where = f"{fault.size} bytes at {fault.addr:#x}"
    if fault.cache_id is None:
        return where
    unit = f"slot {fault.slot}" if fault.block is None else f"block {fault.block}"
    return f"cache {fault.cache_id}, tensor {fault.tensor_index}, {unit} ({where})"


class FaultMarks:
    """Fault marks on the memory of one instance. Thread-safe."""

    def __init__(self, instance: Instance) -> None:
        self._cluster_id = instance.cluster_id
        self._ranges = instance.registry.ranges
        self._links = instance.links
        self._notices = FaultNotices(instance.registry, instance.node.probe, self._found)
        self.on_notice: Callable[[Link, Faulted], None] = self._notices.receive
        self.close: Callable[[], None] = self._notices.close

    def check_local(
        self, operation: str, cache: LocalCache, plan: Plan, peer: int | None, *, local: bool
    ) -> None:
        """Raise if a transfer touches a marked range of a local cache.

        Args:
            operation: Public name of the call.
            cache: The local cache.
            plan: The descriptors.
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
            fault_of(self._cluster_id, cache, piece)
            for piece in marks
            if ((begin < np.uint64(piece.addr + piece.size)) & (end > np.uint64(piece.addr))).any()
        ]
        if touched:
            raise fail(
                LLMStatusCode.LLM_DEVICE_MEM_ERROR,
                operation,
                f"local {NOT_ACCESSIBLE}, found at fault before: {described(touched)}",
                REPAIR,
                cluster_id=peer,
                faults=touched,
            )

    def mark(self, cache: LocalCache, ref: Ref, faults: Sequence[Fault]) -> None:
        """Mark local memory that failed in a transfer that used the cache's entry `ref`."""
        if self._mark_all(cache, ref, [(fault.addr, fault.size) for fault in faults]):
            self.send_to_peers()

    def clear(self, addr: int, size: int) -> None:
        """Remove the marks that touch a range."""
        self._ranges.clear_faulted(addr, size)

    def ranges(self) -> tuple[Fault, ...]:
        """Return the marked memory."""
        return tuple(
            fault_of(self._cluster_id, cache, piece) for cache, piece in self._ranges.faulted()
        )

    def report_to_owner(self, link: Link, entry: Ref, faults: Sequence[Fault]) -> None:
        """Mark memory of a peer that failed, and notify the peer; ignore a failed link.

        Args:
            link: To the owner.
            entry: Entry of the cache that the transfer used.
            faults: The memory that failed.
        """
        ranges = _reported(faults)
        if ranges and entry != ANY_ENTRY:
            link.data.marks.add(entry, ranges)
            with suppress(LLMException):
                self._links.notify(link, encode(Faulted(entry, ranges)))

    def on_peer_marks(self, link: Link, message: Marked) -> None:
        """Replace the recorded fault marks of a peer's cache."""
        link.data.marks.replace(message.entry, message.ranges)

    def _found(self, link: Link, cache: LocalCache, message: Faulted, bad: list[Piece]) -> None:
        """Mark pieces that the probe could not read, and answer the peer that sent the notice."""
        pieces = [(piece.addr, piece.size) for piece in bad]
        if not self._mark_all(cache, message.entry, pieces):
            self._answer(link, cache, message.entry)
            return
        self.send_to_peers()
        addr, size = pieces[0]
        logger.warning(
            "cluster %d met a fault in local memory, %d bytes at %#x%s; repair it and call "
            "remap_registered_memory",
            link.cluster_id,
            size,
            addr,
            f" and {len(pieces) - 1} more ranges" if len(pieces) > 1 else "",
        )

    def _answer(self, link: Link, cache: LocalCache, entry: Ref) -> None:
        """Send a peer the actual marks of a cache, which replace the peer's."""
        marks = tuple((piece.addr, piece.size) for piece in cache.faulted[:MAX_RANGES])
        if cache.ref == entry:
            with suppress(LLMException):
                self._links.notify(link, encode(Marked(entry, marks)))

    @staticmethod
    def check_peer(operation: str, link: Link, remote: RemoteCache, plan: Plan) -> None:
        """Raise if a transfer touches marked memory of a peer.

        Raises:
            LLMException: LLM_SUSPECT_REMOTE_ERROR with the ranges.
        """
        touched = link.data.marks.touched(remote.ref, plan)
        if not touched:
            return
        owner = link.data.peer.cluster_id
        faults = [
            fault_of(owner, remote, piece)
            for addr, size in touched
            for piece in remote.layout.locate(addr, size)
        ]
        raise fail(
            LLMStatusCode.LLM_SUSPECT_REMOTE_ERROR,
            operation,
            f"the peer's {NOT_ACCESSIBLE}, found at fault before: {described(faults)}",
            "recompute what was there; the peer repairs the memory and remaps it",
            cluster_id=owner,
            faults=faults,
        )

    def for_peers(self) -> list[Marked]:
        """Return the marks of the caches that peers may access.

        At most MAX_RANGES of them, so that an endpoint can carry them; transfers that touch the
        others fail.
        """
        by_cache: dict[int, tuple[LocalCache, list[tuple[int, int]]]] = {}
        for cache, piece in self._ranges.faulted()[:MAX_RANGES]:
            if cache.accessible:
                found = by_cache.setdefault(cache.cache_id, (cache, []))
                found[1].append((piece.addr, piece.size))
        return [Marked(cache.ref, tuple(ranges)) for cache, ranges in by_cache.values()]

    def send_to_peers(self) -> None:
        """Send every peer the marks; ignore failed links."""
        bodies = [encode(message) for message in self.for_peers()]
        for link in self._links.links():
            with suppress(LLMException):
                for body in bodies:
                    self._links.notify(link, body)

    def _mark_all(self, cache: LocalCache, ref: Ref, ranges: Sequence[tuple[int, int]]) -> bool:
        """Mark ranges; return False if all were marked already, or the cache was remapped."""
        marked = [self._ranges.mark_faulted(addr, size) for addr, size in ranges]
        if cache.ref != ref:
            for addr, size in ranges:
                self.clear(addr, size)
            return False
        return any(marked)


def _reported(faults: Sequence[Fault]) -> tuple[tuple[int, int], ...]:
    """Return the ranges of a notice, as many as the owner probes."""
    left = MAX_BYTES
    ranges = []
    for fault in faults[:MAX_RANGES]:
        left -= fault.size
        if left < 0:
            break
        ranges.append((fault.addr, fault.size))
    return tuple(ranges)
