"""Reads: the engine moves chunks into slots while own threads empty the ones before."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from llm_datadist import _native
from llm_datadist._backends.nixl.agent import NixlError, Running
from llm_datadist._backends.nixl.chunks import Chunk, chunks, offsets_in_slot
from llm_datadist._backends.nixl.landing import SLOT_BYTES
from llm_datadist._backends.nixl.progress import Work
from llm_datadist._backends.outcomes import Code, Outcome

if TYPE_CHECKING:
    from llm_datadist._backends.nixl.channel import NixlChannel
    from llm_datadist._backends.transfer import Transfer

__all__ = ["Pull"]

_MAX_RUNNING: Final = 3

_SLOT_WAIT_S: Final = 0.05


class _Under(NamedTuple):
    """A chunk in the hands of the engine."""

    chunk: Chunk
    slot: int
    running: Running


class Pull:
    """The reads of one channel. Thread-safe."""

    def __init__(self, channel: NixlChannel) -> None:
        self._channel = channel
        self._backend = channel.backend

    def run(self, transfer: Transfer) -> Outcome | str:
        """Carry a read out; text says why it has to go over the lanes instead."""
        why_not = self._channel.memory.why_not(transfer)
        if why_not:
            return why_not
        before = self._look(transfer)
        if before.code != Code.OK:
            return before
        moved = self._move(transfer)
        if isinstance(moved, str) or moved.code != Code.OK:
            return moved
        return self._check(transfer)._replace(moved_bytes=moved.moved_bytes)

    def _look(self, transfer: Transfer) -> Outcome:
        """Have the peer's threads see whether it may be read, and can be.

        Engines without RDMA hardware read host memory with the peer's own processor: a page that
        cannot be read would end its process.
        """
        memory = self._channel.memory
        if memory.is_device(transfer) or self._backend.in_hardware(self._channel.there):
            return self._check(transfer)._replace(moved_bytes=0)
        return self._channel.lanes.probe(transfer)

    def _check(self, transfer: Transfer) -> Outcome:
        """Ask whether all is as it was: with a byte, or none where lanes cannot read."""
        count = 0 if self._channel.memory.is_device(transfer) else 1
        landing = self._backend.landing
        return self._channel.lanes.read(
            replace(
                transfer,
                local=np.full(count, landing.scratch, np.uint64),
                remote=transfer.remote[:count],
                length=np.ones(count, np.uint64),
                local_ref=landing.ref,
            )
        )

    def _move(self, transfer: Transfer) -> Outcome | str:
        """Move all of it."""
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
                chunk, slot, _ = under.popleft()
                copied = self._empty(transfer, chunk, slot)
                self._backend.slots.give(slot)
                work.count(copied)
        finally:
            for each in under:
                self._backend.slots.hold(each.slot, each.running)

    def _fill(self, work: Work, under: deque[_Under]) -> None:
        """Give the engine work as long as there is some and a slot for it."""
        slots = self._backend.slots
        while len(under) < (1 if self._channel.engine_copies else _MAX_RUNNING):
            slot = slots.take(0 if under else self._slot_wait_s(work.transfer))
            if slot is None:
                if not under:
                    work.leave()
                return
            chunk = work.next()
            if chunk is None:
                slots.give(slot)
                return
            try:
                running = self._channel.memory.start(chunk, slot)
            except NixlError as error:
                slots.rest(slot)  # some of its pieces may be on their way
                work.end(str(error))
                return
            if running is None:
                slots.give(slot)
                work.end("the peer has withdrawn that memory")
                return
            self._channel.was_posted(running, chunk.total_bytes)
            under.append(_Under(chunk, slot, running))

    @staticmethod
    def _slot_wait_s(transfer: Transfer) -> float:
        left_s = (transfer.deadline_ns - time.monotonic_ns()) / 1e9
        return max(0.0, min(left_s, _SLOT_WAIT_S))

    def _empty(self, transfer: Transfer, chunk: Chunk, slot: int) -> Outcome:
        landing = self._backend.landing
        outcome = Outcome(
            *_native.copy(
                chunk.local,
                offsets_in_slot(chunk.length) + np.uint64(landing.slot(slot)),
                chunk.length,
                self._backend.node.native,
                transfer.local_ref,
                landing.ref,
                transfer.deadline_ns,
            )
        )
        at = outcome.descriptor
        return outcome._replace(descriptor=int(chunk.origin[at]) if at >= 0 else -1)
