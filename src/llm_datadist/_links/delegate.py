"""What the link table asks of the layer above, and what it tells it.

Unless it says otherwise, all is called on worker threads, never on the control loop, and may block;
it must come to an end by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_datadist._errors import LLMStatusCode
    from llm_datadist._links.link import Link, LinkData, Peer
    from llm_datadist._protocol.lane_auth import OpenLane
    from llm_datadist._protocol.messages import DomainHello

__all__ = ["Hooks", "LinkDelegate", "Refusal"]


class LinkDelegate(Protocol):
    """The data plane of links; implemented by the engine."""

    def endpoint(self, link_id: int) -> bytes:
        """Return what the peer needs to reach our memory over this link; at most 32 KiB.

        A link that then does not come about is not heard of again.
        """
        ...

    def show_proof(self, link_id: int, proof: bytes) -> None:
        """Show the peer of a link that is being made that this end's page is this end's.

        Before the peer's `connect`. Called on the control thread: must not block.
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
        """Make a link usable; an exception refuses it, and its text goes to both ends' callers.

        Args:
            peer: The other end.
            link_id: Unique in this table; the two ends number a link each for itself.
            endpoint: What the peer's delegate returned from `endpoint`.
            client_lanes: On which we ask; their sockets are connected and non-blocking.
            server_lanes: The same on which the peer asks.

        Ownership of all lanes passes with the call, also when it raises. The peer may ask on its
        lanes before its `connect` or ours has returned.
        """
        ...

    def missing_lanes(self, data: LinkData) -> tuple[int, int]:
        """Return how many lanes fewer there are than `connect` got: (on which we ask, we serve).

        Negative for more. Called on the control thread: must not block.
        """
        ...

    def add_lanes(
        self, data: LinkData, client_lanes: list[OpenLane], server_lanes: list[OpenLane]
    ) -> None:
        """Put further lanes into use, or close them when the link has ended; see `connect`.

        Called on the control thread: must not block.
        """
        ...

    def traffic(self, data: LinkData) -> int:
        """Return a number that changes with each answer of the peer's data plane.

        Called on the control thread: must not block.
        """
        ...

    def ping_all(self, links: Sequence[LinkData], deadline_ns: int) -> list[bool]:
        """Ask many peers' data planes for a sign of life, all at once; return who gave one.

        Some of the links may have ended meanwhile.
        """
        ...

    def disconnect(self, data: LinkData) -> None:
        """End a link; when it returns no transfer of that link touches memory. Once per connect."""
        ...


@final
@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a link for a domain is refused; the dialer's `LinkResult` carries both."""

    status: LLMStatusCode
    reason: str


@final
@dataclass(slots=True)
class Hooks:
    """Callbacks into the layers above; each may be left None. Set before `LinkTable.start`.

    Attributes:
        on_request: Answers a peer's `LinkTable.request`; an exception goes back as its text.
        Requests
            and notifications of one link come one at a time and in order.
        on_notify: Takes a peer's `LinkTable.notify`.
        on_domain_hello: Asked by the accepting end, with the dialer's proven cluster id: None
        accepts;
            text refuses with LLM_LINK_FAILED, a Refusal with its own status (LLM_NOT_YET_LINK for
            "try again later"). Without the hook every domain is refused.
        on_domain_linked: Told on the accepting end that a link now is held for that domain; also
        when
            the link was there before.
        on_lost: Told once of every link that was lost or that the peer ended, after its data was
            disconnected.
    """

    on_request: Callable[[Link, bytes], bytes] | None = None
    on_notify: Callable[[Link, bytes], None] | None = None
    on_domain_hello: Callable[[DomainHello, int], str | Refusal | None] | None = None
    on_domain_linked: Callable[[DomainHello, Link], None] | None = None
    on_lost: Callable[[Link], None] | None = None
