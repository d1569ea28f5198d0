"""State of one pair of a domain at one member. Not thread-safe: see `domain`."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from llm_datadist._links import DomainHello, Link
    from llm_datadist._protocol.rank_table import Address

__all__ = ["Pair"]


@final
class Pair:
    """This member of a domain and one other.

    Attributes:
        peer_id: Cluster id of the other.
        rank: Its rank.
        addresses: Candidates from the rank table, the preferred one first.
        dials: Whether this member dials: its rank is the higher one.
        hello: Hello of the dialing end; None at an accepting end until it arrives.
        link: The pair's link, once both ends have entered it for this domain.
        trial: At the dialing end, the link that the peer has been asked to enter and has not
            answered for.
        has_left: Whether the peer has left the domain after it was linked to all members.
        note: What the pair waits for, or why the last attempt made no link.
        attempts: Attempts that ended without a link.
    """

    __slots__ = (
        "addresses",
        "attempts",
        "dials",
        "has_left",
        "hello",
        "link",
        "note",
        "peer_id",
        "rank",
        "trial",
    )

    def __init__(
        self, peer_id: int, rank: int, addresses: tuple[Address, ...], *, dials: bool
    ) -> None:
        self.peer_id = peer_id
        self.rank = rank
        self.addresses = addresses
        self.dials = dials
        self.hello: DomainHello | None = None
        self.link: Link | None = None
        self.trial: Link | None = None
        self.has_left = False
        self.note = "not dialed yet" if dials else "it has not dialed yet"
        self.attempts = 0

    @property
    def links(self) -> list[Link]:
        """The links that this end holds for the pair."""
        return [link for link in {self.link, self.trial} if link is not None]

    def enter(self, link: Link) -> None:
        """Record the link that both ends have entered."""
        self.link = link
        self.trial = None
        self.note = ""

    def reset(self, note: str) -> None:
        """Record that the pair has no link, and must be linked again."""
        self.link = self.trial = None
        self.has_left = False
        self.note = note

    def describe(self) -> dict[str, object]:
        """Return the facts that `describe_domain` shows of this pair."""
        gone = "" if self.link is None else self.link.reason
        return {
            "cluster_id": self.peer_id,
            "rank": self.rank,
            "we": "dial" if self.dials else "accept",
            "addresses": list(self.addresses),
            "linked": self.link is not None and self.link.alive,
            "attempts": self.attempts,
            "note": gone or self.note,
        }
