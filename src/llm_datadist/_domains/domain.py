"""State of one domain at one member: its pairs, and the status that follows from them.

Not thread-safe: `Domains` holds its lock.

Source: api.md 4.6.
"""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING, final

from msgspec.structs import replace

from llm_datadist._links import DomainHello
from llm_datadist._types import RegisterMemStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llm_datadist._links import Link
    from llm_datadist._protocol.rank_table import Address

__all__ = ["Domain", "Pair"]

logger = logging.getLogger("llm_datadist")


@final
class Pair:
    """This member of a domain and one other.

    Attributes:
        peer_id: Cluster id of the other.
        rank: Its rank.
        addresses: Candidates from the rank table, the preferred one first.
        dials: Whether this member dials: its rank is the higher one.
        hello: Hello of the dialing end; None at an accepting end until it arrives.
        link: The pair's link, once it is up for this domain.
        note: Why the last attempt made no link.
        attempts: Dials that ended without a link.
    """

    __slots__ = ("addresses", "attempts", "dials", "hello", "link", "note", "peer_id", "rank")

    def __init__(
        self, peer_id: int, rank: int, addresses: tuple[Address, ...], *, dials: bool
    ) -> None:
        self.peer_id = peer_id
        self.rank = rank
        self.addresses = addresses
        self.dials = dials
        self.hello: DomainHello | None = None
        self.link: Link | None = None
        self.note = "not dialed yet" if dials else "it has not dialed yet"
        self.attempts = 0

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


@final
class Domain:
    """A domain from `link` to `unlink`.

    Args:
        comm_id: Number of the domain at this instance.
        cluster_id: The instance's own id.
        name: Its name.
        ranks: Cluster id to rank.
        pairs: One for each other member.
        deadline: Time limit of the set-up, on the clock of `time.monotonic`.
    """

    def __init__(
        self,
        comm_id: int,
        cluster_id: int,
        name: str,
        ranks: Mapping[int, int],
        pairs: Iterable[Pair],
        deadline: float,
    ) -> None:
        self.comm_id = comm_id
        self.cluster_id = cluster_id
        self.hello = DomainHello(
            name=name, ranks=dict(ranks), rank=ranks[cluster_id], token=secrets.randbits(64)
        )
        self.pairs = {pair.peer_id: pair for pair in pairs}
        for pair in self.pairs.values():
            if pair.dials:
                pair.hello = replace(self.hello, acceptor=pair.peer_id)
        self.deadline = deadline
        self.failure = ""

    @property
    def name(self) -> str:
        """Its name."""
        return self.hello.name

    @property
    def unlinked(self) -> list[Pair]:
        """The pairs without a link."""
        return [pair for pair in self.pairs.values() if pair.link is None]

    def status(self, now: float) -> RegisterMemStatus:
        """Return the status of the domain; FAILED is final.

        OK once every pair was linked: a member that leaves does not change that, even if it leaves
        before this member's first query. The death of a peer is a failure.
        """
        self._notice_dead_links()
        unlinked = self.unlinked
        if unlinked and now >= self.deadline:
            notes = (f"cluster {pair.peer_id} (rank {pair.rank}): {pair.note}" for pair in unlinked)
            self.fail(f"time limit (link_total_time) reached; {'; '.join(notes)}")
        if self.failure:
            return RegisterMemStatus.FAILED
        return RegisterMemStatus.PREPARING if unlinked else RegisterMemStatus.OK

    def fail(self, reason: str, level: int = logging.ERROR) -> None:
        """Set the domain to FAILED and log the reason; only the first reason counts."""
        if not self.failure:
            self.failure = reason
            logger.log(
                level,
                "domain %r (comm id %d) of cluster %d failed: %s",
                self.name,
                self.comm_id,
                self.cluster_id,
                reason,
            )

    def is_related(self, hello: DomainHello, peer_id: int) -> bool:
        """Return whether a hello of the same name concerns this domain, even if it disagrees."""
        return peer_id in self.hello.ranks or self.cluster_id in hello.ranks

    def disagreement(self, hello: DomainHello, peer_id: int) -> str:
        """Return how a hello of the same name differs, with both sides' values, or ""."""
        own = self.hello
        if hello.ranks == own.ranks and hello.rank == own.ranks.get(peer_id):
            return ""
        return (
            f"the members of domain {self.name!r} disagree: "
            f"cluster {self.cluster_id} has rank {own.rank} and cluster_rank_info {own.ranks}, "
            f"cluster {peer_id} has rank {hello.rank} and cluster_rank_info {hello.ranks}"
        )

    def describe(self, now: float) -> dict[str, object]:
        """Return the facts that `describe_domain` shows."""
        status = self.status(now)
        return {
            "comm_id": self.comm_id,
            "name": self.name,
            "status": status.name,
            "reason": self.failure,
            "cluster_id": self.cluster_id,
            "rank": self.hello.rank,
            "cluster_rank_info": dict(self.hello.ranks),
            "peers": [pair.describe() for pair in self.pairs.values()],
        }

    def _notice_dead_links(self) -> None:
        """Fail when a peer has died; a peer that left after its set-up is no failure."""
        for pair in self.pairs.values():
            if pair.link is not None and pair.link.lost.is_set() and pair.link.died:
                # The link table has logged the warning.
                reason = f"the link to cluster {pair.peer_id} is gone: {pair.link.reason}"
                self.fail(reason, logging.INFO)
