"""Interfaces that the layer above implements for the link table: data plane and callbacks.

Unless noted otherwise they are called on worker threads, never on the control loop. They may block,
but must return by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt

    from llm_datadist._errors import LLMStatusCode
    from llm_datadist._links.link import Link, LinkData, Peer
    from llm_datadist._protocol.lane_auth import OpenLane
    from llm_datadist._protocol.messages import DomainHello, Leave

__all__ = ["Hooks", "LinkDelegate", "LinkWatch", "Refusal"]


class LinkWatch(Protocol):
    """Looks at the data planes of many links at once, some of which may have ended."""

    def look(self, *, prune: bool) -> tuple[npt.NDArray[np.uint64], list[int]]:
        """Return signs of life of all links, and places of those that have lost lanes.

        The number of a link changes with each answer of the peer's data plane, and with each
        request of the peer to that of this end. Called on the control thread: must not block.

        Args:
            prune: Whether to find idle lanes that the peer has closed, which takes longer.
        """
        ...

    def ping(self, places: Sequence[int], deadline_ns: int) -> list[bool]:
        """Ping peers' data planes at the same time; return which of them answered."""
        ...


class LinkDelegate(Protocol):
    """The data plane of links; implemented by the engine."""

    def endpoint(self, link_id: int) -> bytes:
        """Return the bytes from which the peer's `connect` can reach local memory; at most 32 KiB.

        There is no further call for a link that is then not made.
        """
        ...

    def show_proof(self, link_id: int, proof: bytes) -> None:
        """Publish the proof by which the peer of a new link recognizes this process's page.

        Called before the peer's `connect`, on the control thread: must not block.
        """
        ...

    def connect(
        self,
        peer: Peer,
        link_id: int,
        endpoint: bytes,
        client_lanes: list[OpenLane],
        server_lanes: list[OpenLane],
    ) -> LinkData:
        """Make a link usable; an exception refuses it, and both ends' callers get its text.

        Args:
            peer: The other end.
            link_id: Unique in this table; each end numbers its links by itself.
            endpoint: Returned by `endpoint` of the peer's delegate.
            client_lanes: Lanes on which this end sends requests; connected, non-blocking sockets.
            server_lanes: Lanes on which the peer sends requests.

        Ownership of all lanes passes with the call, also when it raises. The peer may send requests
        before either `connect` has returned.
        """
        ...

    def missing_lanes(self, data: LinkData) -> tuple[int, int]:
        """Return how many lanes fewer than needed there are: (client lanes, server lanes).

        Needed are those of `connect`, and more client lanes, up to `Peer.most_lanes`, once an
        operation could have used them. Negative if there are more. Called on the control
        thread: must not block.
        """
        ...

    def add_lanes(
        self, data: LinkData, client_lanes: list[OpenLane], server_lanes: list[OpenLane]
    ) -> None:
        """Put further lanes into use, or close them when the link has ended; see `connect`.

        Called on the control thread: must not block.
        """
        ...

    def watch(self, links: Sequence[LinkData]) -> LinkWatch:
        """Return what looks at these links for signs of life.

        Called on the control thread: must not block.
        """
        ...

    def ping_all(self, links: Sequence[LinkData], deadline_ns: int) -> list[bool]:
        """Ping many peers' data planes at the same time; return which of them answered.

        Some of the links may have ended meanwhile.
        """
        ...

    def disconnect(self, data: LinkData) -> None:
        """End a link; no transfer of it touches memory after this returns. Once per connect."""
        ...


@final
@dataclass(frozen=True, slots=True)
class Refusal:
    """Status and reason for the dialer of a domain link that is refused."""

    status: LLMStatusCode
    reason: str


@final
@dataclass(slots=True)
class Hooks:
    """Callbacks of the layers above; each may be None. Set before `LinkTable.start`.

    Attributes:
        on_request: Answers a peer's `LinkTable.request`; the peer gets the text of an exception.
            Called for one request or notification of a link at a time, in order.
        on_notify: Receives a peer's `LinkTable.notify`.
        on_domain_hello: Called on the accepting end with the dialer's authenticated cluster id.
            None accepts; text refuses with LLM_LINK_FAILED, a Refusal with its own status
            (LLM_NOT_YET_LINK for "try again later"). Without the hook every domain is refused.
        on_domain_join: Called on the accepting end when the dialer has the link and wants to enter
            it for a domain. None enters it; a Refusal refuses as for `on_domain_hello`. May be
            called again for the same domain. Called on the control thread: must not block.
        on_domain_leave: Called when the peer's part of a domain has ended; returns whether this end
            still needs the link for that domain. Called on the control thread: must not block.
        on_unlink: Called before this end unlinks a link, or all of them: the last moment to send
            something. Called on the control thread: must not block.
        on_lost: Called once for each link that was lost or that the peer ended, after its data was
            disconnected.
    """

    on_request: Callable[[Link, bytes], bytes] | None = None
    on_notify: Callable[[Link, bytes], None] | None = None
    on_domain_hello: Callable[[DomainHello, int], str | Refusal | None] | None = None
    on_domain_join: Callable[[DomainHello, Link], Refusal | None] | None = None
    on_domain_leave: Callable[[Leave, Link], bool] | None = None
    on_unlink: Callable[[], None] | None = None
    on_lost: Callable[[Link], None] | None = None
