"""The memory that one peer publishes: its regions, their prepared lists, and reads in progress."""

from __future__ import annotations

import ctypes
import threading
import time
from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from llm_datadist._backends.nixl.agent import NixlError, rows_of
from llm_datadist._backends.nixl.landing import SLOT_BYTES
from llm_datadist._backends.nixl.prepared_regions import PreparedRegions
from llm_datadist._backends.nixl.region_records import (
    HEADER_BYTES,
    RegionAdded,
    RegionRemoved,
    parse_header,
)
from llm_datadist._backends.nixl.remote_regions import RemoteRegions
from llm_datadist._backends.nixl.trial import TrialTimeoutError
from llm_datadist._backends.outcomes import Code
from llm_datadist._backends.transfer import Transfer
from llm_datadist._plan import Plan
from llm_datadist._types.refs import NO_REF

if TYPE_CHECKING:
    from llm_datadist._backends.lanes import LinkLanes
    from llm_datadist._backends.nixl.agent import Agent, TransferRequest
    from llm_datadist._backends.nixl.chunks import Chunk
    from llm_datadist._backends.nixl.landing import LocalSlots, Slot
    from llm_datadist._backends.nixl.metadata import NixlMetadata
    from llm_datadist._backends.nixl.prepared_regions import PreparedRegion
    from llm_datadist._backends.nixl.trial import Trial

_TRIAL_S: Final = 1.0
_DRAIN_S: Final = 10.0
_DRAIN_PAUSE_S: Final = 0.001


class _Read:
    """A read from before it is posted until it is done: pins its region."""

    __slots__ = ("posting", "request")

    def __init__(self) -> None:
        self.posting = True
        self.request: TransferRequest | None = None

    @property
    def is_known_to_be_done(self) -> bool:
        """`is_done`, without asking the engine."""
        return not self.posting and (self.request is None or self.request.done is not None)

    @property
    def is_done(self) -> bool:
        """Whether the engine has finished it, or never got it."""
        if self.posting:
            return False
        return self.request is None or self.request.poll() is not None


@dataclass(eq=False)
class RemoteMemory:
    """See the module. Thread-safe.

    Attributes:
        agent: Reads it.
        trial: Loads metadata of regions before the agent does.
        slots: Where reads, and the log of regions, arrive.
        lanes: The link's.
        peer: Names the peer's agent, and where its log of regions is.
        key: Of the log's records; see `log_key`.
    """

    agent: Agent
    trial: Trial
    slots: LocalSlots
    lanes: LinkLanes
    peer: NixlMetadata
    key: InitVar[bytes]

    def __post_init__(self, key: bytes) -> None:
        self._log_lock = threading.Lock()  # held by the thread that reads the peer's log
        self._lock = threading.Lock()
        self._withdrawn: list[tuple[int, int]] | None = None  # since the log was read
        self._regions = RemoteRegions(key)
        self._prepared = PreparedRegions(self.agent, self.peer.agent)
        self._reads: list[_Read] = []

    def why_unreachable(self, transfer: Transfer) -> str:
        """Return why the engine cannot read all ranges of a transfer, or "".

        Reads what is new in the peer's log of regions when one is unknown.
        """
        if self._knows(transfer):
            return ""
        left_s = (transfer.deadline_ns - time.monotonic_ns()) / 1e9
        if not self._log_lock.acquire(timeout=max(left_s, 0)):
            return "the peer's log of regions was not read in time"
        try:
            why_not = "" if self._knows(transfer) else self._read_log(transfer.deadline_ns)
        finally:
            self._log_lock.release()
        if not why_not and not self._knows(transfer):
            return "the peer has not registered that memory with NIXL"
        return why_not

    def _knows(self, transfer: Transfer) -> bool:
        with self._lock:
            return self._regions.locate(transfer.remote, transfer.length) is not False

    def is_device(self, transfer: Transfer) -> bool:
        """Whether a transfer's remote memory is known to be an accelerator's."""
        with self._lock:
            found = self._regions.locate(transfer.remote[:1], transfer.length[:1])
        return isinstance(found, RegionAdded) and found.kind == "VRAM"

    def start(self, chunk: Chunk, slot: Slot) -> TransferRequest | None:
        """Start to read a chunk into a slot; None when the peer has withdrawn its memory.

        Raises:
            NixlError: The engine refuses.
        """
        read = _Read()
        with self._lock:
            found = self._regions.locate(chunk.remote, chunk.length)
            if isinstance(found, bool):
                if not found:
                    return None
                region, prepared = next(iter(self._regions.known.values())), None
            else:
                region, prepared = found, self._prepared.find(found, chunk)
                self._release_unused()
            self._reads = [each for each in self._reads if not each.is_known_to_be_done]
            self._reads.append(read)
        try:
            read.request = self._post(region, prepared, chunk, slot)
        finally:
            read.posting = False
        return read.request

    def _post(
        self, region: RegionAdded, prepared: PreparedRegion | None, chunk: Chunk, slot: Slot
    ) -> TransferRequest:
        """Post a read, by index where possible; may take as long as the copy does."""
        remote_indices = None if prepared is None else prepared.indices(chunk)
        local = None if remote_indices is None else self.slots.prepared(region.unit_bytes)
        if prepared is not None and remote_indices is not None and local is not None:
            first = slot.index * (SLOT_BYTES // region.unit_bytes)
            local_indices = np.arange(first, first + len(remote_indices), dtype=np.int32)
            return self.agent.start_prepared(
                local, local_indices, prepared.prepared, remote_indices
            )
        return self.agent.start(
            self.peer.agent,
            rows_of(chunk.packed_at(self.slots.landing.slot(slot.index)), chunk.length),
            rows_of(chunk.remote, chunk.length, region.device_id),
            region.kind,
            write=False,
        )

    def forget(self, address: int, size: int) -> None:
        """Drop a range that the peer withdraws; returns when no read of this peer is in progress.

        Raises:
            TimeoutError: The engine does not finish them.
        """
        with self._lock:
            if self._withdrawn is not None:
                self._withdrawn.append((address, size))
            self._prepared.drop(self._regions.forget(address, size))
            self._release_unused()
            reads = list(self._reads)
        deadline = time.monotonic() + _DRAIN_S
        for each in reads:
            while not each.is_done:
                if time.monotonic() > deadline:
                    raise TimeoutError("reads of the memory have not come to an end")
                time.sleep(_DRAIN_PAUSE_S)
        with self._lock:
            self._release_unused()

    @property
    def is_quiet(self) -> bool:
        """Whether no read of this peer is in progress."""
        with self._lock:
            return all(each.is_done for each in self._reads)

    def close(self) -> None:
        """Release prepared lists."""
        with self._lock:
            self._prepared.drop_all()
            self._release_unused()

    def _release_unused(self) -> None:
        """Release prepared lists once no read is being posted."""
        if self._prepared.unused and not any(each.posting for each in self._reads):
            self._prepared.release_unused()

    def _read_log(self, deadline_ns: int) -> str:
        """Read what is new in the peer's log of regions; return why that is not possible, or ""."""
        slot = self.slots.take(0)
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
            slot.release()
        news = self._regions.read(era, data)
        why_not, loaded = self._load(news.added, deadline_ns)
        with self._lock:
            withdrawn, self._withdrawn = self._withdrawn or [], None
            if loaded is None:
                return why_not
            if era != self._regions.era:
                self._prepared.drop_all()
            self._release_unused()
            known = {id(each) for each in loaded}
            kept = [
                each
                for each in news.records
                if isinstance(each, RegionRemoved) or id(each) in known
            ]
            self._regions.take(news._replace(records=kept))
            for address, size in withdrawn:
                self._regions.forget(address, size)
        return why_not

    def _load(
        self, added: list[RegionAdded], deadline_ns: int
    ) -> tuple[str, list[RegionAdded] | None]:
        """Load the metadata of regions into the engine, if the trial process could load it.

        Returns:
            Why some were not loaded, or "", and those that were; None when not all were tried.
        """
        if not added:
            return "", []
        pieces = [region.metadata for region in added]
        left_s = (deadline_ns - time.monotonic_ns()) / 1e9
        until = time.monotonic() + min(left_s / 2, _TRIAL_S)  # lanes need time, too
        try:
            good = self.trial.accepted(self.peer.agent, self.peer.connection, pieces, until)
        except TrialTimeoutError:
            return "the peer's regions were not tried in time", None
        why_not = "" if len(good) == len(added) else "the peer's regions cannot be loaded"
        loaded = []
        for number in good:
            try:
                self.agent.load(pieces[number])
                loaded.append(added[number])
            except NixlError as error:
                why_not = str(error)
        return why_not, loaded

    def _fetch(self, slot: Slot, offset: int, size: int, deadline_ns: int) -> bytes | str:
        """Read part of the log through a slot; a text says why that is not possible."""
        address = self.slots.landing.slot(slot.index)
        outcome = self.lanes.read(
            Transfer(
                False,
                Plan(np.array((address, self.peer.log_address + offset, size), np.uint64), size),
                self.slots.landing.ref,
                self.peer.log_ref,
                deadline_ns,
                NO_REF,
            )
        )
        if outcome.code != Code.OK:
            return f"the peer's log of regions cannot be read ({Code(outcome.code).name})"
        return ctypes.string_at(address, size)
