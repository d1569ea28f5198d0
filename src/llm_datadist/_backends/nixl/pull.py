"""Pulls: the engine reads the peer's caches into landing slots, local threads empty the slots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np
from msgspec.structs import replace

from llm_datadist._backends.nixl.pipeline import Direction
from llm_datadist._backends.outcomes import Code
from llm_datadist._plan import Plan

if TYPE_CHECKING:
    from llm_datadist._backends.lanes import LinkLanes
    from llm_datadist._backends.nixl.agent import TransferRequest
    from llm_datadist._backends.nixl.chunks import Chunk
    from llm_datadist._backends.nixl.landing import LocalSlots, Slot
    from llm_datadist._backends.nixl.pipeline import Pipeline
    from llm_datadist._backends.nixl.remote_memory import RemoteMemory
    from llm_datadist._backends.outcomes import Outcome
    from llm_datadist._backends.transfer import Transfer


@final
@dataclass(eq=False)
class Pull(Direction):
    """The reads of one link. Thread-safe.

    Attributes:
        pipeline: Moves the chunks.
        lanes: The link's, which check before and after each read that it is allowed.
        slots: Where the bytes arrive.
        remote_memory: The peer's.
        in_hardware: Whether RDMA hardware reads the peer's memory.
    """

    max_in_flight = 3

    pipeline: Pipeline
    lanes: LinkLanes
    slots: LocalSlots
    remote_memory: RemoteMemory
    in_hardware: bool

    def run(self, transfer: Transfer) -> Outcome | str:
        """Carry out a read; a text says why the lanes must do it instead."""
        problem = self.remote_memory.why_unreachable(transfer)
        if problem:
            return problem
        before = self._check_pages(transfer)
        if before.code != Code.OK:
            return before
        moved = self.pipeline.run(transfer, self)
        if isinstance(moved, str) or moved.code != Code.OK:
            return moved
        return self._check(transfer)._replace(moved_bytes=moved.moved_bytes)

    def _check_pages(self, transfer: Transfer) -> Outcome:
        """Have the peer's threads check that the memory may be read, and can be.

        Engines without RDMA hardware read host memory with the peer's own processor: a page that
        cannot be read would end its process.
        """
        if self.in_hardware or self.remote_memory.is_device(transfer):
            return self._check(transfer)._replace(moved_bytes=0)
        return self.lanes.probe(transfer)

    def _check(self, transfer: Transfer) -> Outcome:
        """Check the peer's guards by reading one byte, or none where lanes cannot read."""
        count = 0 if self.remote_memory.is_device(transfer) else 1
        landing = self.slots.landing
        checked = Plan.of(
            np.full(count, landing.scratch, np.uint64),
            transfer.remote[:count],
            np.ones(count, np.uint64),
        )
        return self.lanes.read(replace(transfer, plan=checked, local_ref=landing.ref))

    def take_slots(self, wait_s: float) -> tuple[Slot, ...]:
        slot = self.slots.take(wait_s)
        return (slot,) if slot is not None else ()

    def start(
        self, transfer: Transfer, chunk: Chunk, slots: tuple[Slot, ...]
    ) -> TransferRequest | str:
        request = self.remote_memory.start(chunk, slots[0])
        return "the peer has withdrawn that memory" if request is None else request

    def finish(self, transfer: Transfer, chunk: Chunk, slots: tuple[Slot, ...]) -> Outcome:
        try:
            return self.slots.scatter(slots[0], chunk, transfer)
        finally:
            slots[0].release()
