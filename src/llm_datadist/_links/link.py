"""One end of a link and its lifecycle."""

from __future__ import annotations

import asyncio
import ipaddress
import threading
import time
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final, TypeAlias, final

from llm_datadist._control.sockets import plain_address, printed
from llm_datadist._errors import LLMStatusCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llm_datadist._control.connection import Conversation
    from llm_datadist._control.sockets import Address
    from llm_datadist._links.lane_terms import LaneTerms

__all__ = ["TRANSITIONS", "Link", "LinkData", "LinkResult", "LinkState", "Peer", "same_place"]

#: What a delegate keeps for a link; never looked into here.
LinkData: TypeAlias = Any


@final
@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a link.

    Attributes:
        cluster_id: Its id; may equal our own.
        incarnation: Random number of this life of it.
        address: Where it listens, as far as known, else where it connected from.
        dialed: Whether we opened the link.
        is_self: Whether it is this same instance; both ends of the link are in this table then,
            each with its own data.
        page_proof: What its published page shows for this link, if it runs on this host.
    """

    cluster_id: int
    incarnation: int
    address: Address
    dialed: bool
    is_self: bool
    page_proof: bytes = b""


class LinkState(Enum):
    """Where a link is in its life."""

    CONNECTING = auto()  # in the hands of a set-up, known to nobody else
    LINKED = auto()
    UNLINKING = auto()  # on the wish of either end
    LOST = auto()  # the peer died, went silent, or was dropped
    GONE = auto()  # no transfer of it touches memory any more


#: Which state may follow which.
TRANSITIONS: Final[Mapping[LinkState, frozenset[LinkState]]] = {
    LinkState.CONNECTING: frozenset({LinkState.LINKED}),
    LinkState.LINKED: frozenset({LinkState.UNLINKING, LinkState.LOST}),
    LinkState.UNLINKING: frozenset({LinkState.GONE}),
    LinkState.LOST: frozenset({LinkState.GONE}),
    LinkState.GONE: frozenset(),
}


@final
class Pulse:
    """What the heartbeat knows of one link.

    Attributes:
        heard: What had come by the last look: messages, and answers on lanes.
        looked: When that was.
        silence: Seconds that nothing has been heard for, as far as this end was awake to hear.
        asked: Silence after which the lanes are asked.
        asking: Whether they are being asked.
        beaten: Whether a Ping has gone out as well since something was heard.
    """

    def __init__(self) -> None:
        self.heard = (0, 0)
        self.looked = time.monotonic()
        self.silence = self.asked = 0.0
        self.asking = self.beaten = False


@final
class Link:
    """This instance's end of a link. Readable from any thread; only the table changes it.

    Attributes:
        peer: The other end.
        link_id: What the delegate knows it by; unique in this table.
        generation: Counts the links to this cluster id, from 1.
        state: Where it is in its life.
        data: What the delegate's `connect` returned.
        holders: Names of what wants the link: "clusters", "domain:<name>".
        terms: What the ends agreed about its lanes.
        lost: Set as soon as the link is no longer LINKED, before its data is taken down.
        reason: Why it ended; empty while it lives.
        died: Whether it ended otherwise than by an unlink at either end.
        places: Where `link_clusters` of this end found the peer, and the local ip to connect from.
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
        self.state = LinkState.CONNECTING
        self.holders: frozenset[str] = frozenset()
        self.lost = threading.Event()
        self.reason = ""
        self.died = False
        # Loop thread only from here on.
        self.conversation = conversation
        self.addresses = {peer.address, *addresses}
        self.places: dict[Address, str | None] = {}
        self.peer_unlinks = self.peer_unlinked = self.said_unlinked = False
        self.answered = asyncio.Event()  # the peer has unlinked, or the connection is over
        self.gone = asyncio.Event()
        self.pulse = Pulse()

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
        """Whether this is the accepting end of a link with this very instance."""
        return self.peer.is_self and not self.peer.dialed

    @property
    def alive(self) -> bool:
        """Whether the link is up as far as is known."""
        return self.state is LinkState.LINKED

    @property
    def is_unlinked_here(self) -> bool:
        """Whether a call at this end takes the link down, of which the peer need not know yet."""
        return self.state is LinkState.UNLINKING and not self.peer_unlinks

    @property
    def encrypted(self) -> str:
        """What travels inside TLS."""
        if self.terms.relays is not None:
            return "control connection and lanes"
        return "control connection" if self.conversation.connection.is_encrypted else "nothing"

    def enter(self, state: LinkState, reason: str = "") -> None:
        """Go on to the next state. Loop thread only."""
        if state not in TRANSITIONS[self.state]:
            raise AssertionError(f"link {self.link_id}: {self.state.name} to {state.name}")
        self.state = state
        if state not in (LinkState.LINKED, LinkState.GONE):
            self.reason = reason
            self.died = state is LinkState.LOST
            self.lost.set()

    def describe(self) -> dict[str, object]:
        """Return the facts of the link."""
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
    """Outcome for one peer.

    Attributes:
        status: LLM_SUCCESS, or what failed.
        reason: For a failure: the peer's address, what happened, what to do.
        link: The link when there is one.
    """

    status: LLMStatusCode
    reason: str = ""
    link: Link | None = None

    @property
    def is_ok(self) -> bool:
        """Whether it is LLM_SUCCESS."""
        return self.status is LLMStatusCode.LLM_SUCCESS


def same_place(one: Address, other: Address) -> bool:
    """Return whether two addresses are written for the same place; names are not resolved."""
    return _canonical(one) == _canonical(other)


def _canonical(address: Address) -> Address:
    host, port = plain_address(address)
    try:
        return str(ipaddress.ip_address(host)), port
    except ValueError:
        return host.lower(), port
