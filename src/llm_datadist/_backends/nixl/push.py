"""Pushes: the engine writes landing slots of the peer, whose threads move the bytes on.

Only a process's own threads write its caches. So what the engine still writes after a push has
failed lands in a slot, and the target's unregister is as final as over lanes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

import numpy as np

from llm_datadist._backends.nixl.agent import rows_of
from llm_datadist._backends.nixl.landing import SLOT_BYTES, Slots
from llm_datadist._backends.nixl.metadata import GRANTED_SLOTS
from llm_datadist._backends.nixl.pipeline import Direction
from llm_datadist._backends.outcomes import Code, Outcome
from llm_datadist._backends.transfer import Transfer
from llm_datadist._plan import Plan
from llm_datadist._types.refs import NO_REF

if TYPE_CHECKING:
    from llm_datadist._backends.lanes import LinkLanes
    from llm_datadist._backends.nixl.agent import Agent, Rows, TransferRequest
    from llm_datadist._backends.nixl.chunks import Chunk
    from llm_datadist._backends.nixl.landing import LocalSlots, Slot
    from llm_datadist._backends.nixl.metadata import NixlMetadata
    from llm_datadist._backends.nixl.pipeline import Pipeline

_SEEN_FROM_SOURCE: Final = {
    int(Code.GONE): Code.LOCAL_GONE,
    int(Code.REMOTE_FAULT): Code.LOCAL_FAULT,
    int(Code.LOCAL_FAULT): Code.SYSTEM,
}


@final
@dataclass(eq=False)
class Push(Direction):
    """The writes of one link. Thread-safe.

    Attributes:
        pipeline: Moves the chunks.
        lanes: The link's, on which the peer is asked to move each chunk on.
        agent: Writes the peer's slots.
        slots: Where chunks are gathered.
        peer: Names the peer's agent, and the slots that it grants.
    """

    max_in_flight = GRANTED_SLOTS

    pipeline: Pipeline
    lanes: LinkLanes
    agent: Agent
    slots: LocalSlots
    peer: NixlMetadata

    def __post_init__(self) -> None:
        self._granted = Slots(self.peer.landing_slots)

    @property
    def is_quiet(self) -> bool:
        """Whether no write into the peer's slots is in progress."""
        return self._granted.num_held == 0

    def run(self, transfer: Transfer) -> Outcome | str:
        """Carry out a write; a text says why the lanes must do it instead."""
        if self.peer.landing_slots == 0:
            return "the peer has no landing slots for us"
        return self.pipeline.run(transfer, self)

    def take_slots(self, wait_s: float) -> tuple[Slot, ...]:
        granted = self._granted.take(wait_s)
        if granted is None:
            return ()
        local = self.slots.take(wait_s)
        if local is None:
            granted.release()
            return ()
        return local, granted

    def start(
        self, transfer: Transfer, chunk: Chunk, slots: tuple[Slot, ...]
    ) -> TransferRequest | Outcome:
        local, granted = slots
        gathered = self.slots.gather(local, chunk, transfer)
        if gathered.code != Code.OK:
            code = _SEEN_FROM_SOURCE.get(gathered.code, gathered.code)
            return gathered._replace(code=code, moved_bytes=0)
        return self.agent.start(
            self.peer.agent,
            _row(self.slots.landing.slot(local.index), chunk),
            _row(self.peer.landing_address + granted.index * SLOT_BYTES, chunk),
            "DRAM",
            write=True,
        )

    def finish(self, transfer: Transfer, chunk: Chunk, slots: tuple[Slot, ...]) -> Outcome:
        """Have the peer's threads move a chunk from its slot to where it belongs."""
        local, granted = slots
        local.release()
        is_applied = False
        try:
            outcome = self.lanes.push(
                Transfer(
                    True,
                    Plan.of(
                        chunk.packed_at(granted.index * SLOT_BYTES), chunk.remote, chunk.length
                    ),
                    NO_REF,
                    transfer.cache_ref,
                    transfer.deadline_ns,
                    NO_REF,
                    transfer.version,
                )
            )
            is_applied = outcome.code == Code.OK
            return chunk.renumbered(outcome)
        finally:
            granted.release() if is_applied else granted.quarantine()


def _row(address: int, chunk: Chunk) -> Rows:
    return rows_of(np.array([address], np.uint64), np.array([chunk.total_bytes], np.uint64))
