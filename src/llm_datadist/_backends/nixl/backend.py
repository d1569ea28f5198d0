"""NIXL: the engine for RDMA, NVLink and EFA; docs/design/nixl.md: how it keeps the guarantees."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from llm_datadist import _native
from llm_datadist._backends.base import Backend, Capabilities, Unavailable
from llm_datadist._backends.nixl.agent import Agent, NixlError, PreparedList, rows_of
from llm_datadist._backends.nixl.bindings import NUM_POSTERS, has_rdma, load_wheel
from llm_datadist._backends.nixl.channel import NixlChannel
from llm_datadist._backends.nixl.landing import SLOT_BYTES, Landing, Slots
from llm_datadist._backends.nixl.metadata import (
    GRANTED_SLOTS,
    SALT_BYTES,
    NixlMetadata,
    agent_name,
    read_metadata,
)
from llm_datadist._backends.nixl.posting_threads import Posters
from llm_datadist._backends.nixl.region_log import Added, RegionLog, joined, log_key, words_bytes
from llm_datadist._backends.nixl.trial import Trial, TrialTimeoutError
from llm_datadist._logs import later

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_datadist._backends.lanes import LinkLanes
    from llm_datadist._backends.node import Node
    from llm_datadist._backends.transfer import MemoryKind, PeerEndpoint, Region

__all__ = ["SMALL_BYTES", "NixlBackend"]

logger = logging.getLogger("llm_datadist")

SMALL_BYTES: Final = 256 << 10
"""Up to so many bytes one round trip on a lane, checks included, is faster than the engine."""

_OWN_SLOTS: Final = 8
_MAX_OFFERS: Final = 64
_TRIAL_S: Final = 10.0
_MAX_UNITS: Final = 1 << 20


@dataclass(slots=True)
class _Registered:
    """Memory that the engine knows, and for how many caches."""

    region_id: int
    rows: np.ndarray[tuple[int, int], np.dtype[np.uint64]]
    unit_bytes: int
    kind: MemoryKind
    users: int = 1
    published: bool = False


@dataclass(slots=True)
class _Grant:
    """Slots of this instance for the writes of one peer, and the reader that is bound to them."""

    landing: Landing
    reader: _native.HostPeer = field(repr=False)


def _rows(region: Region) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
    """What the engine registers: neighbours as one, but no two allocations of a GPU."""
    ranges = region.addresses, region.sizes
    return rows_of(*(joined(*ranges) if region.kind == "DRAM" else ranges), region.device_id)


def _key(region: Region) -> tuple[bytes, bytes, str]:
    return words_bytes(region.addresses), words_bytes(region.sizes), region.kind


class NixlBackend(Backend):
    """See the module. Thread-safe.

    Args:
        node: The instance.
        engine: "UCX" or "LIBFABRIC".
        params: Parameters of the engine.
        small_bytes: Up to which size lanes do it all; None for SMALL_BYTES.
        rdma_only: Serve host memory only between hosts that both have an RDMA device.
        secret: The instance's, which goes into the key of the log of regions.

    Raises:
        Unavailable: NIXL is not installed, or the engine cannot start.
    """

    name = "nixl"
    capabilities = Capabilities(
        cancels=False, withdraws=True, placements=frozenset({"host", "device"})
    )

    def __init__(
        self,
        node: Node,
        engine: str = "UCX",
        params: Mapping[str, str] | None = None,
        small_bytes: int | None = None,
        *,
        rdma_only: bool = False,
        secret: bytes | None = None,
    ) -> None:
        self.node = node
        self._secret = secret
        self._log_salt = secrets.token_bytes(SALT_BYTES)
        self._rdma_only = rdma_only
        self.engine = engine
        self.small_bytes = SMALL_BYTES if small_bytes is None else small_bytes
        wheel = load_wheel()
        self.distribution = wheel.distribution
        self._lock = threading.Lock()
        self._region_ids = count(1)
        self._regions: dict[tuple[bytes, bytes, str], _Registered] = {}
        self._units: dict[int, PreparedList] = {}
        self._num_units = 0
        self._offers: dict[int, _Grant] = {}
        self._grants: dict[int, _Grant] = {}
        self._retired: list[Landing] = []
        self._peers: dict[str, int] = {}
        self._leaving: list[NixlChannel] = []
        self.slots = Slots(_OWN_SLOTS)
        self.posters = Posters(NUM_POSTERS)
        self.trial = Trial(wheel, engine, params or {})  # starts while the agent does
        try:
            self.agent = Agent(wheel, agent_name(node.incarnation), engine, params or {})
            self._make_memory()
        except BaseException:
            self.trial.close()
            raise

    def _make_memory(self) -> None:
        """Make what peers read, and what the engine writes."""
        try:
            self._log = RegionLog(self.node, log_key(self._secret, self._log_salt))
            self.landing = Landing(self.node, _OWN_SLOTS)
            self.agent.register(self._landing_rows(self.landing), "DRAM")
        except (OSError, NixlError) as error:
            self.agent.close()
            raise Unavailable(f"NIXL has no landing memory: {error}") from error

    # ---- memory

    def register(self, region: Region) -> None:
        key = _key(region)
        with later(), self._lock:
            known = self._regions.get(key)
            if known is not None:
                known.users += 1
            else:
                rows = _rows(region)
                known = _Registered(next(self._region_ids), rows, region.unit_bytes, region.kind)
                self._enroll(known)
                self._regions[key] = known
            if not known.published:
                self._publish(known)

    def _enroll(self, known: _Registered) -> None:
        """Tell the engine; host memory that it refuses is moved over the lanes."""
        if self.agent.closed:
            return
        try:
            self.agent.register(known.rows, known.kind)
        except NixlError as error:
            if known.kind == "VRAM":
                raise Unavailable(f"NIXL does not take the GPU's memory: {error}") from error
            logger.warning(
                "NIXL cannot register %d ranges, they are moved over lanes: %s",
                len(known.rows),
                error,
            )

    def _publish(self, known: _Registered) -> None:
        """Tell peers, under an id that was never used."""
        known.region_id = next(self._region_ids)
        try:
            metadata = self.agent.region_metadata(known.rows, known.kind)
        except NixlError as error:
            logger.debug("region %d is not published: %s", known.region_id, error)
            return
        known.published = True
        self._log.add(
            Added(
                known.region_id,
                known.kind,
                known.unit_bytes,
                int(known.rows[0, 2]),
                words_bytes(known.rows[:, 0]),
                words_bytes(known.rows[:, 1]),
                metadata,
            )
        )

    def withdraw(self, region: Region) -> None:
        with later(), self._lock:
            known = self._regions.get(_key(region))
            if known is not None and known.users == 1:
                self._unpublish(known)

    def _unpublish(self, known: _Registered) -> None:
        if known.published:
            known.published = False
            self._log.remove(known.region_id)

    def deregister(self, region: Region) -> None:
        key = _key(region)
        with later(), self._lock:
            known = self._regions.get(key)
            if known is None:
                return
            known.users -= 1
            if known.users == 0:
                del self._regions[key]
                self._unpublish(known)
                self._dismiss(known)

    def _dismiss(self, known: _Registered) -> None:
        try:
            self.agent.deregister(known.rows, known.kind)
        except NixlError as error:
            logger.debug("NIXL keeps %d ranges registered: %s", len(known.rows), error)

    def remapped(self, address: int, size: int) -> None:
        """Register what touches the range anew, under new ids."""
        with later(), self._lock:
            for known in self._regions.values():
                starts, sizes = known.rows[:, 0], known.rows[:, 1]
                if ((starts < address + size) & (starts + sizes > address)).any():
                    self._unpublish(known)
                    self._dismiss(known)
                    try:
                        self._enroll(known)
                    except Unavailable as error:  # transfers will say so, too
                        logger.warning("after a remap %s", error)
                    self._publish(known)

    def landing_units(self, unit_bytes: int) -> PreparedList | None:
        """Own slots as a prepared list of units of that size; each slot begins a new one.

        None when there are lists of too many sizes already: peers choose these.
        """
        with later(), self._lock:
            if unit_bytes not in self._units:
                per_slot = SLOT_BYTES // unit_bytes
                self._num_units += _OWN_SLOTS * per_slot
                if self._num_units > _MAX_UNITS:
                    self._num_units -= _OWN_SLOTS * per_slot
                    return None
                slots = np.repeat(np.arange(_OWN_SLOTS), per_slot)
                numbers = np.arange(len(slots)) % per_slot
                addresses = self.landing.address + slots * SLOT_BYTES + numbers * unit_bytes
                rows = rows_of(
                    addresses.astype(np.uint64), np.full(len(slots), unit_bytes, np.uint64)
                )
                self._units[unit_bytes] = self.agent.prepare(None, rows, "DRAM")
            return self._units[unit_bytes]

    # ---- links

    def describe(self, link_id: int) -> bytes:
        try:
            connection = self.agent.connection_metadata()
        except NixlError as error:
            logger.debug("no connection by NIXL is offered: %s", error)
            connection = b""
        metadata = NixlMetadata(
            agent=self.agent.name,
            engine=self.engine,
            connection=connection,
            rdma=has_rdma(),
            log_address=self._log.address,
            log_ref=self._log.ref,
            log_salt=self._log_salt,
        )
        try:
            grant = self._make_grant()
            rows = self._landing_rows(grant.landing)
            self.agent.register(rows, "DRAM")
            landing_metadata = self.agent.region_metadata(rows, "DRAM")
        except (OSError, NixlError) as error:
            logger.info("NIXL pushes to this instance go over lanes: %s", error)
            return msgspec.msgpack.encode(metadata)
        with later(), self._lock:
            stale = [] if len(self._offers) < _MAX_OFFERS else [next(iter(self._offers))]
            for old in (*stale, link_id):
                self._retire(self._offers.pop(old, None))
            self._offers[link_id] = grant
        return msgspec.msgpack.encode(
            msgspec.structs.replace(
                metadata,
                landing_address=grant.landing.address,
                landing_slots=GRANTED_SLOTS,
                landing_metadata=landing_metadata,
            )
        )

    def _make_grant(self) -> _Grant:
        """Slots, and a reader of this very process that may read nothing else.

        It reads by system calls, not through a mapping: a process that is stopped and goes on has
        finished a call, but not a copy, and must not finish it when its peer has given up.
        """
        landing = Landing(self.node, GRANTED_SLOTS)
        native = self.node.native
        try:
            reader = _native.HostPeer.own(native)
            reader.restrict_to(landing.address, landing.size)
        except OSError:
            landing.close()
            raise
        return _Grant(landing, reader)

    def connect(self, peer: PeerEndpoint, lanes: LinkLanes) -> NixlChannel:
        there = self._metadata(peer)
        if self._rdma_only and not self.in_hardware(there):
            raise Unavailable("not both hosts have an RDMA device, and lanes are faster without")
        return self._open(peer, there, lanes, must_work=self._rdma_only)

    def connect_device(self, peer: PeerEndpoint, lanes: LinkLanes) -> NixlChannel:
        return self._open(peer, self._metadata(peer), lanes, must_work=True)

    def _metadata(self, peer: PeerEndpoint) -> NixlMetadata:
        return read_metadata(peer.metadata.get(self.name), peer.incarnation, self.engine)

    def log_key(self, there: NixlMetadata) -> bytes:
        """The key of a peer's log of regions."""
        return log_key(self._secret, there.log_salt)

    def _open(
        self, peer: PeerEndpoint, there: NixlMetadata, lanes: LinkLanes, *, must_work: bool
    ) -> NixlChannel:
        why_not = self._why_not(there)
        if why_not and must_work:
            raise Unavailable(why_not)
        if not why_not:
            self._try(there)
        with later(), self._lock:
            grant = self._offers.pop(lanes.link_id, None)
            if grant is not None:
                self._grants[lanes.link_id] = grant
        if grant is not None:
            lanes.attach_landing(grant.reader)
        return NixlChannel(self, peer, there, lanes, why_not)

    def _why_not(self, there: NixlMetadata) -> str:
        """Why a link has to do with its lanes."""
        if there.agent == self.agent.name:
            return "the peer is this instance"
        if self.agent.closed:
            return "NIXL has been shut down here"
        return "" if there.connection else "NIXL has been shut down at the peer"

    def _try(self, there: NixlMetadata) -> None:
        """Have a process of its own load what the peer told; `load` does when it is needed."""
        pieces = [each for each in (there.connection, there.landing_metadata) if each]
        try:
            _, why_not = self.trial.loaded(there.agent, pieces, time.monotonic() + _TRIAL_S)
        except TrialTimeoutError:
            why_not = "the process that tries it is busy"
        if why_not:
            raise Unavailable(f"NIXL cannot connect: {why_not}")

    def load(self, there: NixlMetadata) -> None:
        """Let the engine know a peer, whose `unlinked` undoes it.

        Raises:
            NixlError: It refuses.
        """
        with later(), self._lock:
            self.agent.load(there.connection)
            if there.landing_metadata:
                self.agent.load(there.landing_metadata)
            self._peers[there.agent] = self._peers.get(there.agent, 0) + 1

    def in_hardware(self, there: NixlMetadata) -> bool:
        """Whether RDMA hardware moves the bytes: both hosts have some."""
        return there.rdma and has_rdma()

    def unlinked(self, channel: NixlChannel) -> None:
        """A channel is closed: give back what its link held, as soon as the engine lets go."""
        with later(), self._lock:
            self._retire(self._grants.pop(channel.lanes.link_id, None))
            if channel.is_loaded:
                self._leaving.append(channel)
            for each in list(self._leaving):
                if each.is_quiet:
                    self._leaving.remove(each)
                    self._disconnect(each.there.agent)

    def _disconnect(self, agent: str) -> None:
        left = self._peers.get(agent, 0) - 1
        self._peers[agent] = left
        if left <= 0:
            self._peers.pop(agent, None)
            if left == 0:
                self.agent.forget_peer(agent)

    def _retire(self, grant: _Grant | None) -> None:
        """Take slots back. They stay mapped until the engine ends: a late write may meet them."""
        if grant is None:
            return
        grant.reader.close()
        try:
            self.agent.deregister(self._landing_rows(grant.landing), "DRAM")
        except NixlError as error:
            logger.debug("NIXL keeps landing slots registered: %s", error)
        grant.landing.empty()
        self._retired.append(grant.landing)

    def fence(self, reason: str) -> None:
        """End the engine for good; when it returns nothing of it moves a byte any more.

        Everything goes over the lanes from now on.
        """
        if not self.agent.closed:
            logger.warning("NIXL is shut down, transfers go over lanes: %s", reason)
        self.agent.close()  # also where another thread is at it: what is under way has to end

    def close(self) -> None:
        self.trial.close()
        self.agent.close()
        self.posters.dismiss()
        with later(), self._lock:
            for grant in (*self._offers.values(), *self._grants.values()):
                grant.reader.close()
                grant.landing.close()
            self._offers.clear()
            self._grants.clear()
            for landing in self._retired:
                landing.close()
            self._retired.clear()
        self.landing.close()
        self._log.close()

    @staticmethod
    def _landing_rows(landing: Landing) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
        return rows_of(np.array([landing.address], np.uint64), np.array([landing.size], np.uint64))
