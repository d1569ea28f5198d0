"""A peer's memory as the engine knows it: regions, prepared lists, reads under way."""

from __future__ import annotations

import ctypes
import threading
import time
from typing import TYPE_CHECKING, Final

import numpy as np

from llm_datadist._backends.nixl.agent import NixlError, PreparedList, Running, rows_of
from llm_datadist._backends.nixl.chunks import Chunk, offsets_in_slot
from llm_datadist._backends.nixl.landing import SLOT_BYTES
from llm_datadist._backends.nixl.region_log import (
    HEADER_BYTES,
    Added,
    Gone,
    RemoteRegions,
    parse_header,
    words,
)
from llm_datadist._backends.nixl.trial import TrialTimeoutError
from llm_datadist._backends.outcomes import NO_REF, Code
from llm_datadist._backends.transfer import Transfer

if TYPE_CHECKING:
    from llm_datadist._backends.nixl.channel import NixlChannel

__all__ = ["PeerMemory"]

_MAX_PREPARED: Final = 1 << 20
_MAX_PREPARED_OF_LINK: Final = 1 << 22
_MIN_UNIT_BYTES: Final = 256
_TRIAL_S: Final = 1.0
_DRAIN_S: Final = 10.0
_DRAIN_PAUSE_S: Final = 0.001


class _Units:
    """A region's prepared list: every unit of every tensor."""

    def __init__(self, channel: NixlChannel, region: Added) -> None:
        self.region = region
        unit = np.uint64(region.unit_bytes)
        starts, sizes = words(region.addresses), words(region.sizes)
        order = np.argsort(starts, kind="stable")
        self._starts, self._unit = starts[order], unit
        counts = (sizes[order] // unit).astype(np.int64)
        self._first = np.cumsum(counts) - counts
        self.count = int(counts.sum())
        numbers = np.arange(self.count) - np.repeat(self._first, counts)
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


class _Reading:
    """A read from when it is decided on: its region may not go before it has come to an end."""

    __slots__ = ("posting", "running")

    def __init__(self) -> None:
        self.posting = True
        self.running: Running | None = None

    @property
    def is_known_to_be_over(self) -> bool:
        """`is_over`, without asking the engine."""
        return not self.posting and (self.running is None or self.running.done is not None)

    @property
    def is_over(self) -> bool:
        """Whether the engine is through with it, or never had it."""
        if self.posting:
            return False
        return self.running is None or self.running.poll() is not None


class PeerMemory:
    """See the module. Thread-safe."""

    def __init__(self, channel: NixlChannel) -> None:
        self._channel = channel
        self._learning = threading.Lock()  # held while the peer is asked; nobody else waits for it
        self._lock = threading.Lock()
        self._withdrawn: list[tuple[int, int]] | None = None  # since the log was read
        self._regions = RemoteRegions(channel.backend.log_key(channel.there))
        self._units: dict[int, _Units] = {}
        self._unused: list[_Units] = []
        self._reading: list[_Reading] = []

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
        reading = _Reading()
        with self._lock:
            found = self._regions.locate(chunk.remote, chunk.length)
            if isinstance(found, bool):
                if not found:
                    return None
                region, units = next(iter(self._regions.known.values())), None
            else:
                region, units = found, self._units_of(found, chunk)
            self._reading = [each for each in self._reading if not each.is_known_to_be_over]
            self._reading.append(reading)
        try:
            reading.running = self._post(region, units, chunk, slot)
        finally:
            reading.posting = False
        return reading.running

    def _post(self, region: Added, units: _Units | None, chunk: Chunk, slot: int) -> Running:
        """Have the engine read, by index where that can be; may take as long as the copy does."""
        backend = self._channel.backend
        theirs = None if units is None else units.indices(chunk)
        local = None if theirs is None else backend.landing_units(region.unit_bytes)
        if units is not None and theirs is not None and local is not None:
            first = slot * (SLOT_BYTES // region.unit_bytes)
            ours = np.arange(first, first + len(theirs), dtype=np.int32)
            return backend.agent.start_prepared(local, ours, units.prepared, theirs)
        return backend.agent.start(
            self._channel.there.agent,
            rows_of(
                offsets_in_slot(chunk.length) + np.uint64(backend.landing.slot(slot)), chunk.length
            ),
            rows_of(chunk.remote, chunk.length, region.device_id),
            region.kind,
            write=False,
        )

    def _units_of(self, region: Added, chunk: Chunk) -> _Units | None:
        """The region's prepared list, where it is worth one."""
        unit = region.unit_bytes
        if len(chunk.length) < 2 or not _MIN_UNIT_BYTES <= unit <= SLOT_BYTES:
            return None
        if region.kind == "VRAM":
            # Of what is named by index the engine makes neighbours one, also across allocations.
            return None
        held = self._units.get(region.region_id)
        if held is not None and held.region is region:
            return held
        self._drop_units([region.region_id])  # the peer has used the id once more
        count = int(words(region.sizes).sum()) // unit
        prepared = sum(each.count for each in self._units.values())
        if count > _MAX_PREPARED or prepared + count > _MAX_PREPARED_OF_LINK:
            return None
        self._units[region.region_id] = _Units(self._channel, region)
        return self._units[region.region_id]

    def forget(self, address: int, size: int) -> None:
        """Drop a range that the peer withdraws; returns when no read of this peer's runs.

        Raises:
            TimeoutError: The engine does not come to an end with them.
        """
        with self._lock:
            if self._withdrawn is not None:
                self._withdrawn.append((address, size))
            self._drop_units(self._regions.forget(address, size))
            reading = list(self._reading)
        deadline = time.monotonic() + _DRAIN_S
        for each in reading:
            while not each.is_over:
                if time.monotonic() > deadline:
                    raise TimeoutError("reads of the memory have not come to an end")
                time.sleep(_DRAIN_PAUSE_S)
        with self._lock:
            self._release_unused()

    @property
    def is_quiet(self) -> bool:
        """Whether no read of this peer runs."""
        with self._lock:
            return all(each.is_over for each in self._reading)

    def close(self) -> None:
        """Give back what was prepared."""
        with self._lock:
            self._drop_units(list(self._units))

    def _drop_units(self, region_ids: list[int]) -> None:
        self._unused += [self._units.pop(each) for each in region_ids if each in self._units]
        self._release_unused()

    def _release_unused(self) -> None:
        """Give prepared lists back that nobody posts a read with; what is left waits."""
        if not any(each.posting for each in self._reading):
            while self._unused:
                self._channel.backend.agent.release(self._unused.pop().prepared)

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
            begin = self._regions.tail if era == self._regions.era else 0
            if tail <= begin and era == self._regions.era:
                return ""
            data = self._fetch(slot, HEADER_BYTES + begin, tail - begin, deadline_ns)
            if isinstance(data, str):
                return data
            with self._lock:
                self._withdrawn = []
        finally:
            backend.slots.give(slot)
        news = self._regions.read(era, data)
        why_not, loaded = self._load(news.added, deadline_ns)
        with self._lock:
            withdrawn, self._withdrawn = self._withdrawn or [], None
            if loaded is None:
                return why_not
            if era != self._regions.era:
                self._drop_units(list(self._units))
            known = {id(each) for each in loaded}
            kept = [each for each in news.records if isinstance(each, Gone) or id(each) in known]
            self._regions.take(news._replace(records=kept))
            for address, size in withdrawn:
                self._regions.forget(address, size)
        return why_not

    def _load(self, added: list[Added], deadline_ns: int) -> tuple[str, list[Added] | None]:
        """Have the engine take regions in, those that a process of its own could load.

        Returns:
            Why some were not, and those that were; None when it is not known yet.
        """
        if not added:
            return "", []
        backend, there = self._channel.backend, self._channel.there
        pieces = [region.metadata for region in added]
        left_s = (deadline_ns - time.monotonic_ns()) / 1e9
        until = time.monotonic() + min(left_s / 2, _TRIAL_S)  # lanes need time, too
        try:
            good = backend.trial.accepted(there.agent, there.connection, pieces, until)
        except TrialTimeoutError:
            return "the peer's regions were not tried in time", None
        why_not = "" if len(good) == len(added) else "the peer's regions cannot be loaded"
        loaded = []
        for number in good:
            try:
                backend.agent.load(pieces[number])
                loaded.append(added[number])
            except NixlError as error:
                why_not = str(error)
        return why_not, loaded

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
