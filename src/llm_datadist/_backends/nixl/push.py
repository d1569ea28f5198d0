"""Writes: gathered into own slots, sent by the engine into the peer's, put in place by its threads.

Only a process's own threads write its memory. So what the engine still has under way when a push
has failed lands in a slot, and the target's unregister is as final as over lanes.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from llm_datadist import _native
from llm_datadist._backends.nixl.agent import NixlError, Running, rows_of
from llm_datadist._backends.nixl.chunks import Chunk, chunks, offsets_in_slot
from llm_datadist._backends.nixl.landing import SLOT_BYTES, Slots
from llm_datadist._backends.nixl.progress import Work
from llm_datadist._backends.outcomes import NO_REF, Code, Outcome
from llm_datadist._backends.transfer import Transfer

if TYPE_CHECKING:
    from llm_datadist._backends.nixl.channel import NixlChannel

__all__ = ["Push"]

_SLOT_WAIT_S: Final = 0.05
_SEEN_FROM_SOURCE: Final = {
    int(Code.GONE): Code.LOCAL_GONE,
    int(Code.REMOTE_FAULT): Code.LOCAL_FAULT,
    int(Code.LOCAL_FAULT): Code.SYSTEM,
}


class _Under(NamedTuple):
    """A chunk on its way into a slot of the peer."""

    chunk: Chunk
    slot: int
    remote_slot: int
    running: Running


class Push:
    """The writes of one channel. Thread-safe."""

    def __init__(self, channel: NixlChannel) -> None:
        self._channel = channel
        self._backend = channel.backend
        self._granted = Slots(channel.there.landing_slots)

    @property
    def is_quiet(self) -> bool:
        """Whether no write into the peer's slots is under way."""
        return self._granted.num_held == 0

    def run(self, transfer: Transfer) -> Outcome | str:
        """Carry a write out; text says why it has to go over the lanes instead."""
        if self._channel.there.landing_slots == 0:
            return "the peer has no landing slots for us"
        work = Work(transfer, chunks(transfer.local, transfer.remote, transfer.length, SLOT_BYTES))
        self._channel.share(work, self._take_part)
        return work.result()

    def _take_part(self, work: Work) -> None:
        """Move chunks until there are none left."""
        transfer = work.transfer
        under: deque[_Under] = deque()
        try:
            while True:
                self._fill(work, under)
                if not under or work.has_ended():
                    return
                if not self._channel.settled(under[0].running, work):
                    return
                work.count(self._place(transfer, under.popleft()))
        finally:
            for each in under:
                self._backend.slots.hold(each.slot, each.running)
                self._granted.hold(each.remote_slot, each.running)

    def _fill(self, work: Work, under: deque[_Under]) -> None:
        """Gather chunks and have the engine send them, as long as there are slots at both ends."""
        slots = self._backend.slots
        while not (under and self._channel.engine_copies):
            wait_s = 0 if under else self._slot_wait_s(work.transfer)
            remote_slot = self._granted.take(wait_s)
            slot = None if remote_slot is None else slots.take(wait_s)
            if remote_slot is None or slot is None:
                if remote_slot is not None:
                    self._granted.give(remote_slot)
                if not under:
                    work.leave()
                return
            chunk = work.next()
            begun: Outcome | str | Running | None = None
            if chunk is not None:
                begun = self._begin(work.transfer, chunk, slot, remote_slot)
            if isinstance(begun, str):  # the engine refused; some of it may be on its way
                slots.rest(slot)
                self._granted.rest(remote_slot)
                work.end(begun)
                return
            if chunk is None or not isinstance(begun, Running):
                slots.give(slot)
                self._granted.give(remote_slot)
                if isinstance(begun, Outcome):
                    work.end(begun)
                return
            self._channel.was_posted(begun, chunk.total_bytes)
            under.append(_Under(chunk, slot, remote_slot, begun))

    def _begin(
        self, transfer: Transfer, chunk: Chunk, slot: int, remote_slot: int
    ) -> Outcome | str | Running:
        landing, there = self._backend.landing, self._channel.there
        gathered = Outcome(
            *_native.copy(
                offsets_in_slot(chunk.length) + np.uint64(landing.slot(slot)),
                chunk.local,
                chunk.length,
                self._backend.node.native,
                landing.ref,
                transfer.local_ref,
                transfer.deadline_ns,
            )
        )
        if gathered.code != Code.OK:
            at = gathered.descriptor
            return Outcome(
                _SEEN_FROM_SOURCE.get(gathered.code, gathered.code),
                gathered.sys_errno,
                int(chunk.origin[at]) if at >= 0 else -1,
            )
        size = np.array([chunk.total_bytes], np.uint64)
        try:
            return self._backend.agent.start(
                there.agent,
                rows_of(np.array([landing.slot(slot)], np.uint64), size),
                rows_of(np.array([self._address(remote_slot)], np.uint64), size),
                "DRAM",
                write=True,
            )
        except NixlError as error:
            return str(error)

    def _address(self, remote_slot: int) -> int:
        return self._channel.there.landing_address + remote_slot * SLOT_BYTES

    def _place(self, transfer: Transfer, each: _Under) -> Outcome:
        """Have the peer's threads move a chunk from its slot to where it belongs."""
        self._backend.slots.give(each.slot)
        chunk = each.chunk
        outcome = self._channel.lanes.push(
            Transfer(
                True,
                offsets_in_slot(chunk.length) + np.uint64(each.remote_slot * SLOT_BYTES),
                chunk.remote,
                chunk.length,
                NO_REF,
                transfer.cache_ref,
                transfer.deadline_ns,
                NO_REF,
                transfer.version,
            )
        )
        if outcome.code == Code.OK:
            self._granted.give(each.remote_slot)
        else:
            self._granted.rest(each.remote_slot)
        at = outcome.descriptor
        return outcome._replace(descriptor=int(chunk.origin[at]) if at >= 0 else -1)

    @staticmethod
    def _slot_wait_s(transfer: Transfer) -> float:
        left_s = (transfer.deadline_ns - time.monotonic_ns()) / 1e9
        return max(0.0, min(left_s, _SLOT_WAIT_S))
