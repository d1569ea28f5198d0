"""NIXL: the engine for RDMA, NVLink and EFA; docs/design/nixl.md: how it keeps the guarantees."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import msgspec

from llm_datadist._backends.base import Backend, Capabilities, Unavailable
from llm_datadist._backends.nixl.agent import Agent, NixlError
from llm_datadist._backends.nixl.bindings import NUM_POSTING_THREADS, has_rdma, load_bindings
from llm_datadist._backends.nixl.channel import NixlChannel
from llm_datadist._backends.nixl.connections import Connection, Connections
from llm_datadist._backends.nixl.grants import Grants
from llm_datadist._backends.nixl.landing import LocalSlots
from llm_datadist._backends.nixl.local_memory import LocalMemory
from llm_datadist._backends.nixl.metadata import (
    GRANTED_SLOTS,
    NixlMetadata,
    agent_name,
    read_metadata,
)
from llm_datadist._backends.nixl.pipeline import Pipeline
from llm_datadist._backends.nixl.posting_threads import PostingThreads
from llm_datadist._backends.nixl.pull import Pull
from llm_datadist._backends.nixl.push import Push
from llm_datadist._backends.nixl.region_records import log_key
from llm_datadist._backends.nixl.remote_memory import RemoteMemory
from llm_datadist._backends.nixl.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_datadist._backends.lanes import LinkLanes
    from llm_datadist._backends.node import Node
    from llm_datadist._backends.transfer import PeerEndpoint, Region

logger = logging.getLogger("llm_datadist")

SMALL_BYTES: Final = 256 << 10
"""Up to this size one round trip on a lane, checks included, is faster than the engine."""


class NixlBackend(Backend):
    """See the module. Thread-safe.

    Args:
        node: The instance.
        engine: "UCX" or "LIBFABRIC".
        params: Parameters of the engine.
        small_bytes: Up to which size lanes move everything; None for SMALL_BYTES.
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
        self._secret = secret
        self._rdma_only = rdma_only
        self._engine = engine
        self._small_bytes = SMALL_BYTES if small_bytes is None else small_bytes
        bindings = load_bindings()
        self._facts: dict[str, object] = {"engine": engine, "wheel": bindings.distribution}
        self._posting_threads = PostingThreads(NUM_POSTING_THREADS)
        self._trial = Trial(bindings, engine, params or {})  # starts while the agent does
        try:
            self.agent = Agent(bindings, agent_name(node.incarnation), engine, params or {})
            self._make_memory(node)
        except BaseException:
            self._trial.close()
            raise
        self._grants = Grants(node, self.agent)
        self._connections = Connections(self.agent, self._trial)

    def _make_memory(self, node: Node) -> None:
        """Make what peers read, and what the engine writes."""
        try:
            self.memory = LocalMemory(node, self.agent, self._secret)
            self._slots = LocalSlots(node, self.agent)
        except (OSError, NixlError) as error:
            self.agent.close()
            raise Unavailable(f"NIXL has no landing memory: {error}") from error

    def register(self, region: Region) -> None:
        self.memory.register(region)

    def withdraw(self, region: Region) -> None:
        self.memory.withdraw(region)

    def deregister(self, region: Region) -> None:
        self.memory.deregister(region)

    def remapped(self, address: int, size: int) -> None:
        self.memory.remapped(address, size)

    def describe(self, link_id: int) -> bytes:
        try:
            connection = self.agent.connection_metadata()
        except NixlError as error:
            logger.debug("no connection by NIXL is offered: %s", error)
            connection = b""
        metadata = NixlMetadata(
            agent=self.agent.name,
            engine=self._engine,
            connection=connection,
            rdma=has_rdma(),
            log_address=self.memory.log.address,
            log_ref=self.memory.log.ref,
            log_salt=self.memory.log_salt,
        )
        try:
            address, landing_metadata = self._grants.offer(link_id)
        except (OSError, NixlError) as error:
            logger.info("NIXL pushes to this instance go over lanes: %s", error)
        else:
            metadata = msgspec.structs.replace(
                metadata,
                landing_address=address,
                landing_slots=GRANTED_SLOTS,
                landing_metadata=landing_metadata,
            )
        return msgspec.msgpack.encode(metadata)

    def connect(self, peer: PeerEndpoint, lanes: LinkLanes) -> NixlChannel:
        peer_metadata = self._metadata(peer)
        if self._rdma_only and not _in_hardware(peer_metadata):
            raise Unavailable("not both hosts have an RDMA device, and lanes are faster without")
        return self._open(peer_metadata, lanes, must_work=self._rdma_only)

    def connect_device(self, peer: PeerEndpoint, lanes: LinkLanes) -> NixlChannel:
        return self._open(self._metadata(peer), lanes, must_work=True)

    def _metadata(self, peer: PeerEndpoint) -> NixlMetadata:
        return read_metadata(peer.metadata.get(self.name), peer.incarnation, self._engine)

    def _open(
        self, peer_metadata: NixlMetadata, lanes: LinkLanes, *, must_work: bool
    ) -> NixlChannel:
        problem = self._problem(peer_metadata)
        if problem and must_work:
            raise Unavailable(problem)
        if not problem:
            self._connections.check(peer_metadata)
        reader = self._grants.use(lanes.link_id)
        if reader is not None:
            lanes.attach_landing(reader)
        return self._make_channel(peer_metadata, lanes, problem)

    def _problem(self, peer_metadata: NixlMetadata) -> str:
        """Return why a link can use nothing but its lanes, or ""."""
        if peer_metadata.agent == self.agent.name:
            return "the peer is this instance"
        if self.agent.closed:
            return "NIXL has been shut down here"
        return "" if peer_metadata.connection else "NIXL has been shut down at the peer"

    def _make_channel(
        self, peer_metadata: NixlMetadata, lanes: LinkLanes, problem: str
    ) -> NixlChannel:
        key = log_key(self._secret, peer_metadata.log_salt)
        slots = self._slots
        memory = RemoteMemory(self.agent, self._trial, slots, lanes, peer_metadata, key)
        pipeline = Pipeline(lanes, self._posting_threads)
        return NixlChannel(
            lanes,
            Connection(self._connections, peer_metadata, problem),
            self._grants,
            memory,
            pipeline,
            Pull(pipeline, lanes, slots, memory, _in_hardware(peer_metadata)),
            Push(pipeline, lanes, self.agent, slots, peer_metadata),
            self._small_bytes,
            self._facts,
        )

    def fence(self, reason: str) -> None:
        """Close the agent: when it returns the engine moves no byte any more.

        From then on all transfers use the lanes.
        """
        if not self.agent.closed:
            logger.warning("NIXL is shut down, transfers go over lanes: %s", reason)
        self.agent.close()  # also if another thread does so already: returns only afterwards

    def close(self) -> None:
        self._trial.close()
        self.agent.close()
        self._posting_threads.dismiss()
        self._grants.close()
        self._slots.close()
        self.memory.close()


def _in_hardware(peer_metadata: NixlMetadata) -> bool:
    """Return whether RDMA hardware moves the bytes: both hosts have some."""
    return peer_metadata.rdma and has_rdma()
