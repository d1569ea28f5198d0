"""Memory of this instance that peers may read through NIXL: registered with it, and published."""

from __future__ import annotations

import logging
import secrets
import threading
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, final

from llm_datadist._backends.base import Unavailable
from llm_datadist._backends.nixl.agent import NixlError, rows_of
from llm_datadist._backends.nixl.metadata import SALT_BYTES
from llm_datadist._backends.nixl.region_log import RegionLog
from llm_datadist._backends.nixl.region_records import RegionAdded, joined, log_key, words_bytes
from llm_datadist._logs import later

if TYPE_CHECKING:
    from llm_datadist._backends.nixl.agent import Agent, Rows
    from llm_datadist._backends.node import Node
    from llm_datadist._backends.transfer import MemoryKind, Region

logger = logging.getLogger("llm_datadist")


@dataclass(slots=True)
class _Registered:
    """Memory that the engine knows, and the number of caches that use it."""

    region_id: int
    rows: Rows
    unit_bytes: int
    kind: MemoryKind
    users: int = 1
    published: bool = False


def _rows(region: Region) -> Rows:
    """Return what the engine registers: touching ranges as one, but no two allocations of a GPU."""
    ranges = region.addresses, region.sizes
    return rows_of(*(joined(*ranges) if region.kind == "DRAM" else ranges), region.device_id)


def _key(region: Region) -> tuple[bytes, bytes, str]:
    return words_bytes(region.addresses), words_bytes(region.sizes), region.kind


@final
class LocalMemory:
    """See the module. Thread-safe.

    Args:
        node: The instance.
        agent: Gets the memory registered.
        secret: The instance's, which goes into the key of the log of regions.

    Attributes:
        log: What peers read to find the memory.
        log_salt: Random part of the log's key.
    """

    def __init__(self, node: Node, agent: Agent, secret: bytes | None) -> None:
        self._agent = agent
        self._lock = threading.Lock()
        self._region_ids = count(1)
        self._regions: dict[tuple[bytes, bytes, str], _Registered] = {}
        self.log_salt = secrets.token_bytes(SALT_BYTES)
        self.log = RegionLog(node, log_key(secret, self.log_salt))

    def register(self, region: Region) -> None:
        """See `Backend.register`."""
        key = _key(region)
        with later(), self._lock:
            known = self._regions.get(key)
            if known is not None:
                known.users += 1
            else:
                rows = _rows(region)
                known = _Registered(next(self._region_ids), rows, region.unit_bytes, region.kind)
                self._register(known)
                self._regions[key] = known
            if not known.published:
                self._publish(known)

    def withdraw(self, region: Region) -> None:
        """See `Backend.withdraw`."""
        with later(), self._lock:
            known = self._regions.get(_key(region))
            if known is not None and known.users == 1:
                self._unpublish(known)

    def deregister(self, region: Region) -> None:
        """See `Backend.deregister`."""
        key = _key(region)
        with later(), self._lock:
            known = self._regions.get(key)
            if known is None:
                return
            known.users -= 1
            if known.users == 0:
                del self._regions[key]
                self._unpublish(known)
                self._deregister(known)

    def remapped(self, address: int, size: int) -> None:
        """Register regions that overlap the range again, under new ids."""
        with later(), self._lock:
            for known in self._regions.values():
                starts, sizes = known.rows[:, 0], known.rows[:, 1]
                if ((starts < address + size) & (starts + sizes > address)).any():
                    self._unpublish(known)
                    self._deregister(known)
                    try:
                        self._register(known)
                    except Unavailable as error:  # transfers will say so, too
                        logger.warning("after a remap %s", error)
                    self._publish(known)

    def close(self) -> None:
        """End the log. Idempotent."""
        self.log.close()

    def _register(self, known: _Registered) -> None:
        """Register with the engine; host memory that it refuses is moved over the lanes."""
        if self._agent.closed:
            return
        try:
            self._agent.register(known.rows, known.kind)
        except NixlError as error:
            if known.kind == "VRAM":
                raise Unavailable(f"NIXL does not take the GPU's memory: {error}") from error
            logger.warning(
                "NIXL cannot register %d ranges, they are moved over lanes: %s",
                len(known.rows),
                error,
            )

    def _deregister(self, known: _Registered) -> None:
        try:
            self._agent.deregister(known.rows, known.kind)
        except NixlError as error:
            logger.debug("NIXL keeps %d ranges registered: %s", len(known.rows), error)

    def _publish(self, known: _Registered) -> None:
        """Add the region to the log, under an id that was never used."""
        known.region_id = next(self._region_ids)
        try:
            metadata = self._agent.region_metadata(known.rows, known.kind)
        except NixlError as error:
            logger.debug("region %d is not published: %s", known.region_id, error)
            return
        known.published = True
        self.log.add(
            RegionAdded(
                known.region_id,
                known.kind,
                known.unit_bytes,
                int(known.rows[0, 2]),
                words_bytes(known.rows[:, 0]),
                words_bytes(known.rows[:, 1]),
                metadata,
            )
        )

    def _unpublish(self, known: _Registered) -> None:
        if known.published:
            known.published = False
            self.log.remove(known.region_id)
