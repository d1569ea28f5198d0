"""The engine of one instance: puts registry, links and backends together."""

from __future__ import annotations

import errno
import logging
import secrets
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Annotated

import msgspec

from llm_datadist._backends.base import Unavailable
from llm_datadist._backends.lanes import LinkLanes
from llm_datadist._backends.nixl import has_rdma
from llm_datadist._backends.node import Node, is_of_this_process, set_threads
from llm_datadist._backends.outcomes import NO_REF
from llm_datadist._backends.select import make_backends, select_channel, select_device_channel
from llm_datadist._backends.transfer import PeerEndpoint
from llm_datadist._control.limits import limit_of, memory_remedy
from llm_datadist._devices.cpu import PoolMemory
from llm_datadist._engine.accelerators import check_cuda, check_reaches_devices
from llm_datadist._engine.checksums import FEATURE, Checksums
from llm_datadist._engine.faults import Faults
from llm_datadist._engine.layerwise import Layerwise
from llm_datadist._engine.leases import Leases
from llm_datadist._engine.lending import Lending
from llm_datadist._engine.link_data import LinkData
from llm_datadist._engine.local import LocalCopies
from llm_datadist._engine.memory import RegisteredMemory
from llm_datadist._engine.messages import (
    MAX_RANGES,
    Faulted,
    Guard,
    Inbox,
    Lend,
    Marked,
    Release,
    Remapped,
    Renew,
)
from llm_datadist._engine.remap import Remap
from llm_datadist._engine.transfers import Transfers
from llm_datadist._errors import LLMStatusCode, fail, inherited
from llm_datadist._links import LinkTable
from llm_datadist._protocol.codec import DECODE_ERRORS
from llm_datadist._protocol.messages import MAX_ENDPOINT_BYTES
from llm_datadist._protocol.texts import shown
from llm_datadist._registry import CacheRegistry, Pool
from llm_datadist._types import Placement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_datadist._backends.outcomes import Ref
    from llm_datadist._backends.select import Selection
    from llm_datadist._links import Peer
    from llm_datadist._options import Config
    from llm_datadist._options.settings import Pool as PoolConfig
    from llm_datadist._protocol.lane_auth import OpenLane
    from llm_datadist._types import MemInfo

logger = logging.getLogger("llm_datadist")

_OFFER_S = 600.0
"""A link that was not made this long after its endpoint was asked for will not be made."""


Name = Annotated[str, msgspec.Meta(max_length=64)]
Metadata = Annotated[bytes, msgspec.Meta(max_length=MAX_ENDPOINT_BYTES)]


class Endpoint(msgspec.Struct, array_like=True, frozen=True):
    """How the peer reaches this instance's memory over one link; sent after authentication."""

    link_ref: Guard
    backends: Annotated[dict[Name, Metadata], msgspec.Meta(max_length=16)]
    features: Annotated[tuple[Name, ...], msgspec.Meta(max_length=64)] = ()
    """What its native threads know beyond the first version of the wire format."""
    marks: Annotated[tuple[Marked, ...], msgspec.Meta(max_length=MAX_RANGES)] = ()
    """Its memory that is known to be at fault."""
    rdma: bool = False
    """Whether its host has an RDMA device."""


class Engine:
    """One initialised instance. Thread-safe.

    Args:
        cluster_id: The instance's id.
        config: Its parsed options.

    Raises:
        LLMException: LLM_OUT_OF_MEMORY: a pool or the published page cannot be had; LLM_FAILED:
            memory files or descriptors are refused;
            LLM_FEATURE_NOT_ENABLED: the options ask for memory of an accelerator, and there is
            none, or nothing that moves it.
    """

    def __init__(self, cluster_id: int, config: Config) -> None:
        if config.device == "cuda":
            check_cuda(config)
        self.cluster_id = cluster_id
        self.config = config
        self.closing = self.inherited = False
        self.incarnation = secrets.randbits(63) | 1
        if config.transfer_threads is not None:
            set_threads(config.transfer_threads)
        self._offered: dict[int, tuple[Ref, float]] = {}
        self._offered_lock = threading.Lock()
        self._memories: list[PoolMemory] = []
        self._pools: dict[Placement, Pool] = {}
        try:
            self.node = Node(self.incarnation)
        except OSError as error:
            is_memory = error.errno == errno.ENOMEM
            raise fail(
                LLMStatusCode.LLM_OUT_OF_MEMORY if is_memory else LLMStatusCode.LLM_FAILED,
                "init",
                f"the published directory cannot be had ({error})",
                memory_remedy(error),
            ) from error
        try:
            self._add_pool(Placement.DEVICE, "mem_pool_cfg", config.device_pool)
            self._add_pool(Placement.HOST, "host_mem_pool_cfg", config.host_pool)
            self.registry = CacheRegistry(
                self.node,
                max_registered_addrs=config.max_registered_addrs,
                pools=self._pools,
                listener=RegisteredMemory(self),
            )
            memories = tuple(self._memories)
            try:
                offer = make_backends(config, self.node, memories)
            except Unavailable as error:
                raise fail(
                    LLMStatusCode.LLM_PARAM_INVALID, "init", str(error), "set transfer_backend"
                ) from error
            self.backends, self._missing = offer.backends, offer.missing
            if config.device == "cuda":
                check_reaches_devices(self.backends, self._missing)
            self.faults = Faults(self)
            self._remap = Remap(self)
            self.links = LinkTable(cluster_id, config, self.incarnation, self)
            self.lending = Lending(self)
            self.leases = Leases(self)
            inbox = Inbox(
                {
                    Remapped: self._remap.serve,
                    Lend: self.lending.lend,
                    Renew: self.lending.renew,
                },
                {
                    Faulted: self.faults.receive,
                    Marked: self.faults.heed,
                    Release: self.lending.release,
                },
            )
            self.links.hooks.on_request = inbox.on_request
            self.links.hooks.on_notify = inbox.on_notify
            self.checksums = Checksums(self)
            self.transfers = Transfers(self)
            self.layerwise = Layerwise(self)
            self.local = LocalCopies(self)
        except BaseException:
            self._release_memory()
            raise

    def _add_pool(self, placement: Placement, option: str, pool: PoolConfig | None) -> None:
        if pool is None:
            return
        try:
            memory = PoolMemory(pool.memory_size, f"llm_datadist-{option}")
        except MemoryError as error:
            raise fail(
                LLMStatusCode.LLM_OUT_OF_MEMORY,
                "init",
                f"{option} cannot be had: {error}",
                _pool_remedy(error),
            ) from error
        self._memories.append(memory)
        self._pools[placement] = Pool(memory.address, pool.memory_size, pool.page_shift)

    def start(self) -> None:
        """Start the control thread and the listener.

        Raises:
            LLMException: LLM_FAILED: the listen address is in use or not of this machine.
        """
        listen = self.config.listen
        try:
            self.links.start(listen)
        except OSError as error:
            raise fail(
                LLMStatusCode.LLM_FAILED,
                "init",
                error.strerror or str(error),
                limit_of(
                    error, "choose an address of this machine and a free port in listen_ip_info"
                ),
            ) from error

    def check_open(self, operation: str) -> None:
        """Raise RuntimeError when the instance was finalised."""
        if self.inherited:
            raise RuntimeError(inherited(operation))
        if self.closing:
            raise RuntimeError(
                f"{operation}: the LLMDataDist instance is not initialised any more; call init()"
            )

    def remap(self, mem_infos: tuple[MemInfo, ...]) -> None:
        """See CacheManager.remap_registered_memory."""
        self._remap.run(mem_infos)

    def describe_link(self, cluster_id: int) -> dict[str, object]:
        """See LLMDataDist.describe_link."""
        link = self.links.get(cluster_id, "describe_link")
        return {**self.links.describe(cluster_id), **link.data.describe()}

    # The delegate of the link table; called on its executor threads.

    def endpoint(self, link_id: int) -> bytes:
        """What the peer of link `link_id` needs to reach this instance's memory."""
        now = time.monotonic()
        ref = self.node.open_guard()
        with self._offered_lock:
            for old, (old_ref, since) in list(self._offered.items()):
                if now - since > _OFFER_S:
                    del self._offered[old]
                    self.node.close_guard(*old_ref)
            self._offered[link_id] = ref, now
        backends = {backend.name: backend.describe(link_id) for backend in self.backends}
        known = Endpoint(ref, backends, (FEATURE,), tuple(self.faults.marked()), has_rdma())
        return msgspec.msgpack.encode(known)

    def show_proof(self, link_id: int, proof: bytes) -> None:
        """Let the peer of a link that is being made see that this page is this end's."""
        with self._offered_lock:
            own_ref, _ = self._offered.get(link_id, (NO_REF, 0.0))
        if own_ref != NO_REF:
            self.node.show_proof(own_ref, proof)

    def connect(
        self,
        peer: Peer,
        link_id: int,
        endpoint: bytes,
        client_lanes: list[OpenLane],
        server_lanes: list[OpenLane],
    ) -> LinkData:
        """Make the data plane of a link.

        Raises:
            LLMException: LLM_LINK_FAILED: no backend can serve this pair.
        """
        heal = partial(self.links.heal, link_id)
        with self._offered_lock:
            own_ref, _ = self._offered.pop(link_id, (NO_REF, 0.0))
        lanes = LinkLanes(self.node, link_id, client_lanes, server_lanes, heal)
        try:
            there = msgspec.msgpack.decode(endpoint, type=Endpoint)
            known = PeerEndpoint(
                peer.cluster_id,
                peer.incarnation,
                there.link_ref,
                peer.page_proof,
                there.backends,
            )
            selection = select_channel(self.backends, known, lanes)
            self._check_expected(selection, known, rdma=there.rdma and has_rdma())
            beside, why_not = select_device_channel(self.backends, known, lanes, selection.channel)
            lanes.serve()  # OSError: this instance was finalised meanwhile, and lanes closed
        except (Unavailable, *DECODE_ERRORS, OSError) as error:
            lanes.close()
            self.node.close_guard(*own_ref)
            remedy = 'set transfer_backend to "auto" on both sides'
            raise fail(
                LLMStatusCode.LLM_LINK_FAILED,
                "link_clusters",
                f"no data path to the peer: {shown(str(error))}",
                limit_of(error, remedy) if isinstance(error, OSError) else remedy,
                cluster_id=peer.cluster_id,
            ) from error
        logger.info(
            "link to cluster %d uses backend %s%s",
            peer.cluster_id,
            selection.channel.name,
            "".join(f"; not {name}: {why}" for name, why in selection.reasons.items()),
        )
        data = LinkData(
            known,
            lanes,
            selection.channel,
            selection.reasons,
            own_ref,
            device_channel=beside,
            why_no_device=why_not,
            in_process=is_of_this_process(peer.incarnation),
            checksum=self._checksum(peer, there.features),
            keep_directory=self.config.remote_accessible,
        )
        for marked in there.marks:
            data.marks.replace(marked.entry, marked.ranges)
        return data

    def _checksum(self, peer: Peer, features: tuple[str, ...]) -> str:
        """How transfers over a new link are checked."""
        wanted = self.config.checksum
        if wanted in {"off", *features}:
            return wanted
        logger.warning(
            "transfers with cluster %d are not checked: it does not know checksum %s",
            peer.cluster_id,
            wanted,
        )
        return f"off: the peer does not know {wanted}"

    def _check_expected(self, selection: Selection, peer: PeerEndpoint, *, rdma: bool) -> None:
        """Say so when a pair that could use RDMA does not.

        Raises:
            Unavailable: strict_backend is on.
        """
        if not rdma or self.config.backend != "auto" or selection.channel.name != "tcp":
            return
        selection.reasons.update(self._missing)
        why = selection.reasons.get("nixl", "unknown")
        problem = f"both hosts have an RDMA device, but NIXL cannot be used: {why}"
        if self.config.strict_backend:
            selection.channel.close()
            raise Unavailable(f"{problem}; strict_backend is on")
        logger.warning("link to cluster %d is slower than it could: %s", peer.cluster_id, problem)

    def missing_lanes(self, data: LinkData) -> tuple[int, int]:
        """How many lanes fewer there are than at first: on which we ask, and which we serve."""
        return data.lanes.missing()

    def add_lanes(
        self, data: LinkData, client_lanes: list[OpenLane], server_lanes: list[OpenLane]
    ) -> None:
        """Put new lanes of a link into use."""
        data.lanes.add(client_lanes, server_lanes)

    def traffic(self, data: LinkData) -> int:
        """How many operations the peer's native threads have answered."""
        return data.lanes.answers

    def ping_all(self, links: Sequence[LinkData], deadline_ns: int) -> list[bool]:
        """Which of these peers' native threads answer."""
        self._report_offences(links)
        return LinkLanes.ping_all([data.lanes for data in links], deadline_ns)

    def disconnect(self, data: LinkData) -> None:
        """End the data plane of a link; when it returns no transfer of it touches memory."""
        self._report_offences([data])
        self.node.close_guard(*data.own_link_ref)
        data.close()
        self.lending.link_ended(data.lanes.link_id)

    def _report_offences(self, links: Sequence[LinkData]) -> None:
        """Log what peers asked for that no correct one does; it was refused."""
        names = {data.lanes.link_id: f"cluster {data.peer.cluster_id}" for data in links}
        for link_id, malformed, strayed in self.node.lane_server.take_offences():
            logger.warning(
                "%s sent %d malformed frames, and %d pushes of bytes outside the cache that they "
                "name; all were refused; run one version on both sides, and check who that is",
                names.get(link_id, f"the peer of link {link_id}"),
                malformed,
                strayed,
            )

    def begin_close(self) -> None:
        """Refuse new calls and make running ones end with LLM_ENGINE_FINALIZED."""
        self.closing = True
        self.layerwise.close()
        self.faults.close()
        self.node.close()

    def close(self) -> None:
        """End links, threads and memory. Idempotent; never hangs."""
        self.begin_close()
        is_quiet = self.links.close()
        self.registry.close()
        for backend in self.backends:
            backend.close()
        self._release_memory()
        if is_quiet:
            self.node.release()

    def _release_memory(self) -> None:
        self.node.close()
        for memory in self._memories:
            memory.close()


def _pool_remedy(error: MemoryError) -> str:
    smaller = "ask for a smaller memory_size"
    cause = error.__cause__
    return f"{smaller}, or {memory_remedy(cause)}" if isinstance(cause, OSError) else smaller
