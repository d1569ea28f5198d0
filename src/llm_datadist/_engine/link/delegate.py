"""Makes, checks and ends the data planes of links for the link table."""

from __future__ import annotations

import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Annotated, final

import msgspec

from llm_datadist._backends.base import Unavailable
from llm_datadist._backends.gpu import GpuBackend
from llm_datadist._backends.lane_watch import LaneWatch
from llm_datadist._backends.lanes import LinkLanes
from llm_datadist._backends.nixl.bindings import has_rdma
from llm_datadist._backends.node import is_of_this_process
from llm_datadist._backends.select import select_channel, select_device_channel
from llm_datadist._backends.tcp import TcpBackend
from llm_datadist._backends.transfer import PeerEndpoint
from llm_datadist._control.limits import limit_of
from llm_datadist._engine.link.data_plane import CHECKSUM, GATHER, REQUEST_IDS, DataPlane
from llm_datadist._engine.link.messages import MAX_RANGES, Guard, Marked
from llm_datadist._errors import LLMStatusCode, fail
from llm_datadist._protocol.codec import DECODE_ERRORS
from llm_datadist._protocol.messages import MAX_ENDPOINT_BYTES
from llm_datadist._protocol.texts import shown
from llm_datadist._types.refs import NO_REF

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llm_datadist._backends.base import Backend, Channel
    from llm_datadist._backends.node import Node
    from llm_datadist._backends.select import Selection
    from llm_datadist._links import LinkTable, Peer
    from llm_datadist._options.settings import Config
    from llm_datadist._protocol.lane_auth import OpenLane
    from llm_datadist._types.refs import Ref

__all__ = ["DataPlanes", "Endpoint"]

logger = logging.getLogger("llm_datadist")

_FEATURES = (CHECKSUM, GATHER, REQUEST_IDS)
_OFFER_S = 600.0
"""A link that was not made this long after its endpoint was requested is given up."""


Name = Annotated[str, msgspec.Meta(max_length=64)]
Metadata = Annotated[bytes, msgspec.Meta(max_length=MAX_ENDPOINT_BYTES)]


class Endpoint(msgspec.Struct, array_like=True, frozen=True):
    """How a peer reaches this instance's memory over one link; sent after authentication."""

    link_ref: Guard
    backends: Annotated[dict[Name, Metadata], msgspec.Meta(max_length=16)]
    features: Annotated[tuple[Name, ...], msgspec.Meta(max_length=64)] = ()
    """Optional parts of the wire format that it supports."""
    marks: Annotated[tuple[Marked, ...], msgspec.Meta(max_length=MAX_RANGES)] = ()
    """Fault marks on its memory."""
    rdma: bool = False
    """Whether its host has an RDMA device."""


@final
class DataPlanes:
    """Makes and ends the data planes of links; the `LinkDelegate` of the link table. Thread-safe.

    Args:
        config: Parsed options.
        node: Local native core.
        backends: Local data paths, the best one first.
        missing: Data paths that this host does not have, and why.
    """

    def __init__(
        self, config: Config, node: Node, backends: list[Backend], missing: Mapping[str, str]
    ) -> None:
        self._config = config
        self._node = node
        self._backends = backends
        self._missing = missing
        self._offered: dict[int, tuple[Ref, float]] = {}
        self._offered_lock = threading.Lock()
        self._links: LinkTable
        self._marks: Callable[[], list[Marked]]
        self._on_end: Callable[[int], None]

    def attach(
        self, links: LinkTable, marks: Callable[[], list[Marked]], on_end: Callable[[int], None]
    ) -> None:
        """Connect the parts that are made later. Must precede `LinkTable.start`.

        Args:
            links: The link table.
            marks: Returns the fault marks that a new peer must know.
            on_end: Called with the id of each link that has ended.
        """
        self._links, self._marks, self._on_end = links, marks, on_end

    def endpoint(self, link_id: int) -> bytes:
        """Return what the peer of a link needs to reach this instance's memory."""
        now = time.monotonic()
        ref = self._node.open_guard()
        with self._offered_lock:
            for old, (old_ref, since) in list(self._offered.items()):
                if now - since > _OFFER_S:
                    del self._offered[old]
                    self._node.close_guard(*old_ref)
            self._offered[link_id] = ref, now
        backends = {backend.name: backend.describe(link_id) for backend in self._backends}
        local_end = Endpoint(ref, backends, _FEATURES, tuple(self._marks()), has_rdma())
        return msgspec.msgpack.encode(local_end)

    def show_proof(self, link_id: int, proof: bytes) -> None:
        """Show a proof on the published page to the peer of a link that is being made."""
        with self._offered_lock:
            own_ref, _ = self._offered.get(link_id, (NO_REF, 0.0))
        if own_ref != NO_REF:
            self._node.show_proof(own_ref, proof)

    def connect(
        self,
        peer: Peer,
        link_id: int,
        endpoint: bytes,
        client_lanes: list[OpenLane],
        server_lanes: list[OpenLane],
    ) -> DataPlane:
        """Make the data plane of a link.

        Raises:
            LLMException: LLM_LINK_FAILED: no backend can serve this pair.
        """
        heal = partial(self._links.repair_lanes, link_id)
        with self._offered_lock:
            own_ref, _ = self._offered.pop(link_id, (NO_REF, 0.0))
        lanes = LinkLanes(
            self._node, link_id, client_lanes, server_lanes, heal, most=peer.most_lanes
        )
        try:
            remote = msgspec.msgpack.decode(endpoint, type=Endpoint)
            peer_endpoint = PeerEndpoint(
                peer.cluster_id, peer.incarnation, remote.link_ref, peer.page_proof, remote.backends
            )
            backends = tuple(self._backends)
            selection = select_channel(backends, peer_endpoint, lanes)
            self._check_expected(selection, peer_endpoint, rdma=remote.rdma and has_rdma())
            device_channel, why_not = select_device_channel(
                tuple(self._backends), peer_endpoint, lanes, selection.channel
            )
            if device_channel is not selection.channel:
                self._check_device_path(selection, device_channel, why_not, peer_endpoint)
            lanes.serve()  # OSError: the instance was finalized, which closed the lanes
        except (Unavailable, *DECODE_ERRORS, OSError) as error:
            lanes.close()
            self._node.close_guard(*own_ref)
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
        data = DataPlane(
            peer_endpoint,
            lanes,
            selection.channel,
            selection.reasons,
            own_ref,
            device_channel=device_channel,
            why_device=why_not,
            in_process=is_of_this_process(peer.incarnation),
            checksum=self._checksum(peer, remote.features),
            gathers=GATHER in remote.features,
            keep_directory=self._config.remote_accessible,
            takes_ended=REQUEST_IDS in remote.features,
        )
        for marked in remote.marks:
            data.marks.replace(marked.entry, marked.ranges)
        return data

    def _checksum(self, peer: Peer, features: tuple[str, ...]) -> str:
        """Return how transfers over a new link are checked."""
        wanted = self._config.checksum
        if wanted in {"off", *features}:
            return wanted
        logger.warning(
            "transfers with cluster %d are not checked: it does not know checksum %s",
            peer.cluster_id,
            wanted,
        )
        return f"off: the peer does not know {wanted}"

    def _check_expected(self, selection: Selection, peer: PeerEndpoint, *, rdma: bool) -> None:
        """Log a pair that could use RDMA and does not.

        Raises:
            Unavailable: strict_backend is on.
        """
        if not rdma or self._config.backend != "auto" or selection.channel.name != "tcp":
            return
        selection.reasons.update(self._missing)
        why = selection.reasons.get("nixl", "unknown")
        problem = f"both hosts have an RDMA device, but NIXL cannot be used: {why}"
        if self._config.strict_backend:
            selection.channel.close()
            raise Unavailable(f"{problem}; strict_backend is on")
        logger.warning("link to cluster %d is slower than it could: %s", peer.cluster_id, problem)

    def _check_device_path(
        self, selection: Selection, device_channel: Channel | None, why: str, peer: PeerEndpoint
    ) -> None:
        """Log a pair with GPUs on one host whose memory must go over the lanes.

        Raises:
            Unavailable: strict_backend is on.
        """
        both = GpuBackend.name in peer.metadata and self._config.device == "cuda"
        if not both or device_channel is None or device_channel.name != TcpBackend.name:
            return
        problem = f"memory of GPUs goes over the lanes: {why}"
        if self._config.strict_backend:
            selection.channel.close()
            raise Unavailable(f"{problem}; strict_backend is on")
        logger.warning("link to cluster %d is slower than it could: %s", peer.cluster_id, problem)

    def missing_lanes(self, data: DataPlane) -> tuple[int, int]:
        """Return how many client lanes and server lanes are missing."""
        return data.lanes.missing()

    def add_lanes(
        self, data: DataPlane, client_lanes: list[OpenLane], server_lanes: list[OpenLane]
    ) -> None:
        """Put new lanes of a link into use."""
        data.lanes.add(client_lanes, server_lanes)

    def watch(self, links: Sequence[DataPlane]) -> LaneWatch:
        """Return what looks at the lanes of these links, and pings them."""

        def ping(places: Sequence[int], deadline_ns: int) -> list[bool]:
            return self.ping_all([links[place] for place in places], deadline_ns)

        return LaneWatch([data.lanes for data in links], ping)

    def ping_all(self, links: Sequence[DataPlane], deadline_ns: int) -> list[bool]:
        """Return whether the native threads of each peer answer."""
        self._report_offences(links)
        return LinkLanes.ping_all([data.lanes for data in links], deadline_ns)

    def disconnect(self, data: DataPlane) -> None:
        """End the data plane of a link; when it returns no transfer of it touches memory."""
        self._report_offences([data])
        self._node.close_guard(*data.own_link_ref)
        data.close()
        self._on_end(data.lanes.link_id)

    def _report_offences(self, links: Sequence[DataPlane]) -> None:
        """Log malformed frames and out-of-range pushes; the native core has refused them."""
        offences = self._node.lane_server.take_offences()
        if not offences:  # as almost always; there may be a thousand links
            return
        names = {data.lanes.link_id: f"cluster {data.peer.cluster_id}" for data in links}
        for link_id, malformed, strayed in offences:
            logger.warning(
                "%s sent %d malformed frames, and %d pushes of bytes outside the cache that they "
                "name; all were refused; run one version on both sides, and check who that is",
                names.get(link_id, f"the peer of link {link_id}"),
                malformed,
                strayed,
            )
