"""One end of a link and its lifecycle."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final, TypeAlias, final

from llm_datadist._control.events import LoopEvent, ThreadEvent
from llm_datadist._control.sockets import plain_address, printed
from llm_datadist._errors import LLMStatusCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llm_datadist._control.conversation import Conversation
    from llm_datadist._control.sockets import Address
    from llm_datadist._links.lane_terms import LaneTerms

__all__ = ["TRANSITIONS", "Link", "LinkData", "LinkResult", "LinkState", "Peer", "same_address"]

#: The delegate's own data of a link; opaque to this package.
LinkData: TypeAlias = Any


@final
@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a link.

    Attributes:
        cluster_id: Its id; may equal that of this instance.
        incarnation: Random number that the peer chose when it was initialized.
        address: Where it listens, if known, else where it connected from.
        dialed: Whether this end opened the link.
        is_self: Whether it is this same instance; both ends of the link are in this table then,
            each with its own data.
        most_lanes: Lanes that the link may have in each direction.
        page_proof: Proof that its published page shows for this link if it runs on this host.
    """

    cluster_id: int
    incarnation: int
    address: Address
    dialed: bool
    is_self: bool
    page_proof: bytes = b""
    most_lanes: int = 1


class LinkState(Enum):
    """State of one end of a link."""

    CONNECTING = auto()  # being set up, not in the table yet
    LINKED = auto()
    UNLINKING = auto()  # either end unlinks it
    LOST = auto()  # the peer died, went silent, or was dropped
    GONE = auto()  # no transfer of the link touches memory any more


#: The states that may follow each state.
TRANSITIONS: Final[Mapping[LinkState, frozenset[LinkState]]] = {
    LinkState.CONNECTING: frozenset({LinkState.LINKED}),
    LinkState.LINKED: frozenset({LinkState.UNLINKING, LinkState.LOST}),
    LinkState.UNLINKING: frozenset({LinkState.GONE}),
    LinkState.LOST: frozenset({LinkState.GONE}),
    LinkState.GONE: frozenset(),
}


@final
class Link:
    """This instance's end of a link. Readable from any thread; only the table changes it.

    Attributes:
        peer: The other end.
        link_id: Unique in this table; the delegate identifies the link by it.
        generation: Counts the links to this cluster id, from 1.
        state: See LinkState.
        data: Returned by the delegate's `connect`.
        holders: Names of those that need the link: "clusters", "domain:<name>/<token>".
        terms: The terms that the ends agreed for its lanes.
        lost: Set as soon as the link is no longer LINKED, before its data is disconnected.
        reason: Why it ended; empty while it is up.
        died: Whether it ended in another way than by an unlink at either end.
        dialed_addresses: Addresses at which `link_clusters` of this end reached the peer, each with
            the local ip to connect from.
        unlink_received: Whether the peer has sent Unlink.
        unlinked_received: Whether the peer has sent Unlinked.
        unlinked_sent: Whether this end has sent Unlinked.
        answered: Set when the peer has sent Unlinked, or the connection is over.
        gone: Set in the state GONE.
    """

    def __init__(
        self,
        peer: Peer,
        link_id: int,
        generation: int,
        data: LinkData,
        conversation: Conversation,
        terms: LaneTerms,
        addresses: Iterable[Address],
    ) -> None:
        self.peer = peer
        self.link_id = link_id
        self.generation = generation
        self.data = data
        self.terms = terms
        self.state: LinkState = LinkState.CONNECTING
        self.holders: frozenset[str] = frozenset()
        self.lost: ThreadEvent = ThreadEvent()
        self.reason: str = ""
        self.died: bool = False
        # Loop thread only below.
        self.conversation = conversation
        self.addresses: set[Address] = {peer.address, *addresses}
        self.dialed_addresses: dict[Address, str | None] = {}
        self.unlink_received = self.unlinked_received = self.unlinked_sent = False
        self.answered: LoopEvent = LoopEvent()
        self.gone: LoopEvent = LoopEvent()

    @property
    def cluster_id(self) -> int:
        """Id of the peer."""
        return self.peer.cluster_id

    @property
    def incarnation(self) -> int:
        """Incarnation of the peer."""
        return self.peer.incarnation

    @property
    def address(self) -> Address:
        """Address of the peer."""
        return self.peer.address

    @property
    def is_mirror(self) -> bool:
        """Whether this is the accepting end of a link of this instance with itself."""
        return self.peer.is_self and not self.peer.dialed

    @property
    def alive(self) -> bool:
        """Whether the link is up, as far as this end knows."""
        return self.state is LinkState.LINKED

    @property
    def is_unlinked_locally(self) -> bool:
        """Whether this end unlinks, and the peer has not."""
        return self.state is LinkState.UNLINKING and not self.unlink_received

    def hold_for_peer(self, holder: str) -> None:
        """Add a holder that the peer names. Loop thread only.

        A domain of the peer has one holder: that of its last call of `link`. A peer that calls
        again and again would otherwise fill memory.
        """
        name = holder.rpartition("/")[0]
        others = (each for each in self.holders if each.rpartition("/")[0] != name)
        self.holders = frozenset({*others, holder})

    @property
    def encrypted(self) -> str:
        """Names of the connections of the link that use TLS."""
        if self.terms.relays is not None:
            return "control connection and lanes"
        return "control connection" if self.conversation.connection.is_encrypted else "nothing"

    def enter(self, state: LinkState, reason: str = "") -> None:
        """Change to the next state. Loop thread only."""
        if state not in TRANSITIONS[self.state]:
            raise AssertionError(f"link {self.link_id}: {self.state.name} to {state.name}")
        self.state = state
        if state not in (LinkState.LINKED, LinkState.GONE):
            self.reason = reason
            self.died = state is LinkState.LOST
            self.lost.set()

    def describe(self) -> dict[str, object]:
        """Return the facts that `describe_link` shows."""
        return {
            "cluster_id": self.cluster_id,
            "peer": printed(self.address),
            "incarnation": f"{self.incarnation:016x}",
            "is_self": self.peer.is_self,
            "encrypted": self.encrypted,
            "opened_by": "this end" if self.peer.dialed else "the peer",
            "state": self.state.name,
            "link_id": self.link_id,
            "generation": self.generation,
            "holders": sorted(self.holders),
        }

    def __repr__(self) -> str:
        return (
            f"Link(cluster_id={self.cluster_id}, address={printed(self.address)!r}, "
            f"link_id={self.link_id}, state={self.state.name})"
        )


@final
@dataclass(frozen=True, slots=True)
class LinkResult:
    """Outcome of linking or unlinking one peer.

    Attributes:
        status: LLM_SUCCESS or the failure.
        reason: Of a failure: the peer's address, the problem, the remedy.
        link: The link, if there is one.
    """

    status: LLMStatusCode
    reason: str = ""
    link: Link | None = None

    @property
    def is_ok(self) -> bool:
        """Whether the status is LLM_SUCCESS."""
        return self.status is LLMStatusCode.LLM_SUCCESS


def same_address(one: Address, other: Address) -> bool:
    """Return whether two addresses are equal however they are written; names are not resolved."""
    return _canonical(one) == _canonical(other)


def _canonical(address: Address) -> Address:
    host, port = plain_address(address)
    try:
        return str(ipaddress.ip_address(host)), port
    except ValueError:
        return host.lower(), port
