"""A peer's memory as the engine knows it: regions, prepared lists, reads under way."""

from __future__ import annotations

import ctypes
import threading
import time
from typing import TYPE_CHECKING, Final

import numpy as np

from llm_datadist._backends.base import Transfer
from llm_datadist._backends.nixl.agent import NixlError, PreparedList, Running, rows_of
from llm_datadist._backends.nixl.landing import SLOT_BYTES
from llm_datadist._backends.nixl.pieces import Chunk, offsets_in_slot
from llm_datadist._backends.nixl.regions import (
    HEADER_BYTES,
    Added,
    RemoteRegions,
    parse_header,
    words,
)
from llm_datadist._backends.outcomes import NO_REF, Code

if TYPE_CHECKING:
    from llm_datadist._backends.nixl.channel import NixlChannel

__all__ = ["PeerMemory"]

_MAX_PREPARED: Final = 1 << 20
_MIN_UNIT_BYTES: Final = 256
_DRAIN_S: Final = 10.0
_DRAIN_PAUSE_S: Final = 0.001


class _Units:
    """A region's prepared list: every unit of every tensor."""

    def __init__(self, channel: NixlChannel, region: Added) -> None:
        unit = np.uint64(region.unit_bytes)
        starts, sizes = words(region.addresses), words(region.sizes)
        order = np.argsort(starts, kind="stable")
        self._starts, self._unit = starts[order], unit
        counts = (sizes[order] // unit).astype(np.int64)
        self._first = np.cumsum(counts) - counts
        numbers = np.arange(int(counts.sum())) - np.repeat(self._first, counts)
        addresses = np.repeat(self._starts, counts) + numbers.astype(np.uint64) * unit
        rows = rows_of(addresses, np.full(len(addresses), unit), region.device_id)
        self.prepared: PreparedList = channel.backend.agent.prepare(
            channel.there.agent, rows, region.kind
        )

    def indices(self, chunk: Chunk) -> np.ndarray[tuple[int], np.dtype[np.int32]] | None:
        """Numbers of the chunk's pieces, when each is one unit."""
        if not (chunk.length == self._unit).all():
            return None
        tensor = np.searchsorted(self._starts, chunk.remote, side="right") - 1
        offset = chunk.remote - self._starts[tensor]
        if (offset % self._unit).any():
            return None
        numbers = self._first[tensor] + (offset // self._unit).astype(np.int64)
        found: np.ndarray[tuple[int], np.dtype[np.int32]] = numbers.astype(np.int32)
        return found


class PeerMemory:
    """See the module. Thread-safe."""

    def __init__(self, channel: NixlChannel) -> None:
        self._channel = channel
        self._learning = threading.Lock()  # held while the peer is asked; nobody else waits for it
        self._lock = threading.Lock()
        self._regions = RemoteRegions()
        self._units: dict[int, _Units] = {}
        self._reading: list[Running] = []

    def why_not(self, transfer: Transfer) -> str:
        """Why the engine cannot reach all that a read names; looks at the peer's log on a miss."""
        if self._knows(transfer):
            return ""
        left_s = (transfer.deadline_ns - time.monotonic_ns()) / 1e9
        if not self._learning.acquire(timeout=max(left_s, 0)):
            return "the peer's log of regions was not read in time"
        try:
            why_not = "" if self._knows(transfer) else self._learn(transfer.deadline_ns)
        finally:
            self._learning.release()
        if not why_not and not self._knows(transfer):
            return "the peer has not registered that memory with NIXL"
        return why_not

    def _knows(self, transfer: Transfer) -> bool:
        with self._lock:
            return self._regions.locate(transfer.remote, transfer.length) is not False

    def is_device(self, transfer: Transfer) -> bool:
        """Whether what a read names is memory of an accelerator, as far as is known."""
        with self._lock:
            found = self._regions.locate(transfer.remote[:1], transfer.length[:1])
        return isinstance(found, Added) and found.kind == "VRAM"

    def start(self, chunk: Chunk, slot: int) -> Running | None:
        """Begin to read a chunk into a slot; None when the peer has withdrawn its memory.

        Raises:
            NixlError: The engine refuses.
        """
        with self._lock:
            found = self._regions.locate(chunk.remote, chunk.length)
            if isinstance(found, bool):
                if not found:
                    return None
                region = next(iter(self._regions.known.values()))
            else:
                region = found
            running = self._start_prepared(region, chunk, slot) if found is region else None
            if running is None:
                landing = self._channel.backend.landing
                local = offsets_in_slot(chunk.length) + np.uint64(landing.slot(slot))
                running = self._channel.backend.agent.start(
                    self._channel.there.agent,
                    rows_of(local, chunk.length),
                    rows_of(chunk.remote, chunk.length, region.device_id),
                    region.kind,
                    write=False,
                )
            self._reading = [each for each in self._reading if each.done is None]
            self._reading.append(running)
            return running

    def _start_prepared(self, region: Added, chunk: Chunk, slot: int) -> Running | None:
        unit = region.unit_bytes
        if len(chunk.length) < 2 or not _MIN_UNIT_BYTES <= unit <= SLOT_BYTES:
            return None
        if region.kind == "VRAM":
            # Of what is named by index the engine makes neighbours one, also across allocations.
            return None
        if int(words(region.sizes).sum()) // unit > _MAX_PREPARED:
            return None
        if region.region_id not in self._units:
            self._units[region.region_id] = _Units(self._channel, region)
        units = self._units[region.region_id]
        theirs = units.indices(chunk)
        if theirs is None:
            return None
        backend = self._channel.backend
        first = slot * (SLOT_BYTES // unit)
        ours = np.arange(first, first + len(theirs), dtype=np.int32)
        return backend.agent.start_prepared(
            backend.landing_units(unit), ours, units.prepared, theirs
        )

    def forget(self, address: int, size: int) -> None:
        """Drop a range that the peer withdraws; returns when no read of this peer's runs.

        Raises:
            TimeoutError: The engine does not come to an end with them.
        """
        with self._lock:
            for region_id in self._regions.forget(address, size):
                self._drop_units(region_id)
            reading = list(self._reading)
        deadline = time.monotonic() + _DRAIN_S
        for running in reading:
            while running.poll() is None:
                if time.monotonic() > deadline:
                    raise TimeoutError("reads of the memory have not come to an end")
                time.sleep(_DRAIN_PAUSE_S)

    @property
    def is_quiet(self) -> bool:
        """Whether no read of this peer runs."""
        with self._lock:
            return all(running.poll() is not None for running in self._reading)

    def close(self) -> None:
        """Give back what was prepared."""
        with self._lock:
            for region_id in list(self._units):
                self._drop_units(region_id)

    def _drop_units(self, region_id: int) -> None:
        units = self._units.pop(region_id, None)
        if units is not None:
            self._channel.backend.agent.release(units.prepared)

    def _learn(self, deadline_ns: int) -> str:
        """Read what is new in the peer's log of regions; say why that cannot be done."""
        backend = self._channel.backend
        slot = backend.slots.take(0)
        if slot is None:
            return "no landing slot is free"
        try:
            header = self._fetch(slot, 0, HEADER_BYTES, deadline_ns)
            if isinstance(header, str):
                return header
            era, tail = parse_header(header)
            known = self._regions.tail if era == self._regions.era else 0
            if tail <= known and era == self._regions.era:
                return ""
            data = self._fetch(slot, HEADER_BYTES + known, tail - known, deadline_ns)
            if isinstance(data, str):
                return data
        finally:
            backend.slots.give(slot)
        with self._lock:
            if era != self._regions.era:
                for region_id in list(self._units):
                    self._drop_units(region_id)
            return self._load(self._regions.take(era, data))

    def _load(self, added: list[Added]) -> str:
        """Have the engine take regions in; those that it does not are forgotten again."""
        why_not = ""
        for region in added:
            try:
                self._channel.backend.agent.load(region.metadata)
            except NixlError as error:
                self._regions.drop(region.region_id)
                why_not = str(error)
        return why_not

    def _fetch(self, slot: int, offset: int, size: int, deadline_ns: int) -> bytes | str:
        """Read a piece of the log, by way of a slot; text says why that cannot be done."""
        landing, there = self._channel.backend.landing, self._channel.there
        address = landing.slot(slot)
        outcome = self._channel.lanes.read(
            Transfer(
                False,
                np.array([address], np.uint64),
                np.array([there.log_address + offset], np.uint64),
                np.array([size], np.uint64),
                landing.ref,
                there.log_ref,
                deadline_ns,
                NO_REF,
            )
        )
        if outcome.code != Code.OK:
            return f"the peer's log of regions cannot be read ({Code(outcome.code).name})"
        return ctypes.string_at(address, size)
