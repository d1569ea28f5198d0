"""One end of a pair of instances that a backend connects: node, memory, lanes, channel."""

from __future__ import annotations

import secrets
import socket
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from llm_datadist._backends.lanes import LinkLanes
from llm_datadist._backends.node import Node
from llm_datadist._backends.transfer import PeerEndpoint, Region
from llm_datadist._protocol.lane_auth import LaneKeys, OpenLane
from llm_datadist._types import Placement
from llm_datadist._types.refs import Ref
from llm_datadist.testing._arena import Arena

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_datadist._backends.base import Backend, Channel
    from llm_datadist.testing._bodies import BodyName

    BackendMaker: TypeAlias = Callable[[Node], Backend]

LINK_ID = 1
LANES_PER_DIRECTION = 2


class Introduction(msgspec.Struct, frozen=True):
    """What one end sends to the other, as in a link's handshake."""

    incarnation: int
    link_ref: Ref
    metadata: dict[str, bytes]
    addresses: list[int]
    cache_ref: Ref
    key_ref: Ref
    page_proof: bytes


class BackendEnd:
    """An instance's data plane for one link. `connect` first, `close` last.

    Args:
        maker: The function that makes the backend from a node, by name.
    """

    channel: Channel

    def __init__(self, maker: BodyName) -> None:
        self.arena = Arena()
        self.node = Node(secrets.randbits(64))
        self.backend: Backend = maker.load()(self.node)  # type: ignore[assignment]
        self.region = Region(self.arena.addresses, self.arena.sizes, Placement.HOST)
        self.backend.register(self.region)
        self.cache_ref = self.node.open_entry(
            self.arena.addresses, self.arena.sizes, accessible=True
        )
        self.link_ref = self.node.open_guard()
        self.key_ref = self.node.open_key()
        self.page_proof = secrets.token_bytes(16)
        self.node.show_proof(self.link_ref, self.page_proof)
        self._lanes: LinkLanes | None = None

    def introduction(self) -> Introduction:
        """Describe this end to the other."""
        return Introduction(
            incarnation=self.node.incarnation,
            link_ref=self.link_ref,
            metadata={self.backend.name: self.backend.describe(LINK_ID)},
            addresses=[int(address) for address in self.arena.addresses],
            cache_ref=self.cache_ref,
            key_ref=self.key_ref,
            page_proof=self.page_proof,
        )

    def connect(
        self,
        remote: Introduction,
        client_lanes: list[OpenLane],
        server_lanes: list[OpenLane],
        cluster_id: int,
    ) -> None:
        """Make the channel over connected sockets, and take ownership of them."""
        self._lanes = LinkLanes(self.node, LINK_ID, client_lanes, server_lanes)
        endpoint = PeerEndpoint(
            cluster_id, remote.incarnation, remote.link_ref, remote.page_proof, remote.metadata
        )
        self.channel = self.backend.connect(endpoint, self._lanes)
        self._lanes.serve()

    def close_link(self) -> None:
        """End the link in the order of the engine; idempotent."""
        if self._lanes is None:
            return
        self.node.close_guard(*self.link_ref)
        self.channel.close()
        self._lanes.close()
        self._lanes = None

    def close(self) -> None:
        """Unlink and release everything; idempotent."""
        self.close_link()
        self.node.close_entry(*self.cache_ref)
        self.backend.deregister(self.region)
        self.backend.close()
        self.node.close()


def listen() -> socket.socket:
    """Listen on a free port of the loopback device."""
    return socket.create_server(("127.0.0.1", 0))


def _open_lane(sock: socket.socket) -> OpenLane:
    """Make a lane without authentication, between two ends with the same clock."""
    return OpenLane(sock.detach(), LaneKeys(bytes(16), bytes(16)), 0)


def accept_lanes(listener: socket.socket) -> tuple[list[OpenLane], list[OpenLane]]:
    """Accept the other end's lanes: (lanes to initiate on, lanes to serve)."""
    served = [_open_lane(listener.accept()[0]) for _ in range(LANES_PER_DIRECTION)]
    client = [_open_lane(listener.accept()[0]) for _ in range(LANES_PER_DIRECTION)]
    return client, served


def dial_lanes(port: int) -> tuple[list[OpenLane], list[OpenLane]]:
    """Open lanes to the other end: (lanes to initiate on, lanes to serve)."""
    lanes = [
        _open_lane(socket.create_connection(("127.0.0.1", port)))
        for _ in range(2 * LANES_PER_DIRECTION)
    ]
    return lanes[:LANES_PER_DIRECTION], lanes[LANES_PER_DIRECTION:]
