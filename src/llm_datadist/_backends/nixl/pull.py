"""Reads: the engine moves chunks into slots while own threads empty the ones before."""

from __future__ import annotations

import mmap
import time
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import numpy as np

from llm_datadist import _native
from llm_datadist._backends.base import Transfer
from llm_datadist._backends.nixl.agent import NixlError, Running
from llm_datadist._backends.nixl.landing import SLOT_BYTES
from llm_datadist._backends.nixl.pieces import Chunk, chunks, offsets_in_slot, page_probes
from llm_datadist._backends.outcomes import Code, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_datadist._backends.nixl.channel import NixlChannel

    _Places: TypeAlias = tuple[
        np.ndarray[tuple[int], np.dtype[np.uint64]], np.ndarray[tuple[int], np.dtype[np.int64]]
    ]

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
        one_byte = self._one_byte(transfer)
        before = self._probe(transfer, one_byte)
        if before.code != Code.OK:
            return before._replace(moved_bytes=0)
        moved = self._move(transfer)
        if isinstance(moved, str) or moved.code != Code.OK:
            return moved
        after = self._check(transfer, *one_byte)
        return after._replace(moved_bytes=moved.moved_bytes)

    def _probe(self, transfer: Transfer, one_byte: _Places) -> Outcome:
        """Have the peer's threads see whether it may be read, and can be.

        Engines without RDMA hardware read host memory with the peer's own processor: a page that
        cannot be read would end its process.
        """
        on_device = not len(one_byte[0])
        if on_device or self._channel.backend.in_hardware(self._channel.there):
            return self._check(transfer, *one_byte)
        places, origin = page_probes(transfer.remote, transfer.length, mmap.PAGESIZE)
        return self._check(transfer, places, origin)

    def _one_byte(self, transfer: Transfer) -> _Places:
        """What a check has to read: a byte, or nothing where own threads cannot."""
        count = 0 if self._channel.memory.is_device(transfer) else 1
        return transfer.remote[:count], np.zeros(count, np.int64)

    def _check(
        self,
        transfer: Transfer,
        places: np.ndarray[tuple[int], np.dtype[np.uint64]],
        origin: np.ndarray[tuple[int], np.dtype[np.int64]],
    ) -> Outcome:
        landing = self._backend.landing
        outcome = self._channel.lanes.read(
            Transfer(
                False,
                np.full(len(places), landing.scratch, np.uint64),
                places,
                np.ones(len(places), np.uint64),
                landing.ref,
                transfer.cache_ref,
                transfer.deadline_ns,
                transfer.key_ref,
                transfer.version,
            )
        )
        at = outcome.descriptor
        return outcome._replace(descriptor=int(origin[at]) if at >= 0 else -1)

    def _move(self, transfer: Transfer) -> Outcome | str:
        waiting = chunks(transfer.local, transfer.remote, transfer.length, SLOT_BYTES)
        under: deque[_Under] = deque()
        moved_bytes = 0
        try:
            while True:
                why_not = self._fill(transfer, waiting, under)
                if why_not:
                    return why_not
                if not under:
                    return Outcome(Code.OK, moved_bytes=moved_bytes)
                code = self._channel.wait(under[0].running, transfer)
                if code < 0:
                    return "NIXL has failed"
                if code != Code.OK:
                    return Outcome(code, moved_bytes=moved_bytes)
                chunk, slot, _ = under.popleft()
                copied = self._empty(transfer, chunk, slot)
                self._backend.slots.give(slot)
                moved_bytes += copied.moved_bytes
                if copied.code != Code.OK:
                    return copied._replace(moved_bytes=moved_bytes)
        finally:
            for each in under:
                self._backend.slots.hold(each.slot, each.running)

    def _fill(self, transfer: Transfer, waiting: Iterator[Chunk], under: deque[_Under]) -> str:
        """Give the engine work as long as there is some and a slot for it."""
        slots = self._backend.slots
        while len(under) < _MAX_RUNNING:
            slot = slots.take(0 if under else self._slot_wait_s(transfer))
            if slot is None:
                return "" if under else "no landing slot is free"
            chunk = next(waiting, None)
            if chunk is None:
                slots.give(slot)
                return ""
            try:
                running = self._channel.memory.start(chunk, slot)
            except NixlError as error:
                slots.give(slot)
                return str(error)
            if running is None:
                slots.give(slot)
                return "the peer has withdrawn that memory"
            under.append(_Under(chunk, slot, running))
        return ""

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
