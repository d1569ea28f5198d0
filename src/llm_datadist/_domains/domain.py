"""State of one domain at one member: its pairs, and the status that follows from them.

A pair is *linked* once both ends have entered a link for the domain: first the acceptor, when the
dialer that has the link asks for it (Join), then the dialer, when it has the answer. A link that
breaks before is no link, and costs an attempt. A domain is *complete* as soon as all its pairs
are linked at the same time; before that, a pair that loses its link is linked again, and after it,
the death of a member is a failure.

Not thread-safe: `DomainBook` has the lock. Nothing in this module waits.

Source: api.md 4.6.
"""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING, Protocol, final

from msgspec.structs import replace

from llm_datadist._errors import LLMStatusCode
from llm_datadist._links import DomainHello, Leave, Refusal
from llm_datadist._types import RegisterMemStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llm_datadist._domains.pair import Pair
    from llm_datadist._links import Link
    from llm_datadist._protocol.rank_table import Address

__all__ = ["Domain", "DomainEvents"]

logger = logging.getLogger("llm_datadist")

_MAX_REASON = 300  # of a peer, whose own may contain those of its peers


class DomainEvents(Protocol):
    """Called by a domain, under its lock: must not block."""

    def dial(self, peer_id: int) -> object:
        """A pair that this member dials has lost its link and must be dialed again."""

    def leave(self, link: Link, message: Leave) -> object:
        """The peer at the other end of a link must be told that this end has failed."""


@final
class Domain:
    """A domain from `link` to `unlink`.

    Args:
        comm_id: Number of the domain at this instance.
        cluster_id: The instance's own id.
        name: Its name.
        ranks: Cluster id to rank.
        pairs: One for each other member.
        now: Time of the call of `link`, on the clock of `time.monotonic`.
        seconds: Time limit of the set-up.
        events: Where to report what must be done.
        own_addresses: Where this member may listen.

    Attributes:
        deadline: When the time limit is over.
        probe_times: When an end that waits to be dialed dials to compare the maps.
        failure: Why it has failed; empty before.
        is_complete: Whether all pairs have been linked at the same time.
        listen_problem: Why this member cannot listen now; empty if it can, or need not.
    """

    def __init__(
        self,
        comm_id: int,
        cluster_id: int,
        name: str,
        ranks: Mapping[int, int],
        pairs: Iterable[Pair],
        now: float,
        seconds: float,
        events: DomainEvents,
        own_addresses: tuple[Address, ...] = (),
    ) -> None:
        self.comm_id = comm_id
        self.cluster_id = cluster_id
        self.hello = DomainHello(name=name, ranks=dict(ranks), rank=ranks[cluster_id])
        self.pairs = {pair.peer_id: pair for pair in pairs}
        for pair in self.pairs.values():
            if pair.dials:
                pair.hello = self._hello_for(pair)
        self.deadline = now + seconds
        self.probe_times = [now + seconds / 3, now + 2 * seconds / 3]
        self.own_addresses = own_addresses
        self.failure = ""
        self.is_complete = False
        self.listen_problem = ""
        self._events = events

    @property
    def name(self) -> str:
        """Its name."""
        return self.hello.name

    @property
    def accepts(self) -> bool:
        """Whether another member dials this one."""
        return not all(pair.dials for pair in self.pairs.values())

    @property
    def unlinked(self) -> list[Pair]:
        """The pairs without a link."""
        return [pair for pair in self.pairs.values() if pair.link is None]

    def status(self, now: float) -> RegisterMemStatus:
        """Return the status of the domain; FAILED is final.

        OK from the moment at which it is complete: a member that leaves does not change that, even
        if it leaves before this member's first query.
        """
        self.notice_losses()
        if not self.is_complete and now >= self.deadline:
            self.fail(f"time limit (link_total_time) reached; {self._obstacles()}")
        if self.failure:
            return RegisterMemStatus.FAILED
        return RegisterMemStatus.OK if self.is_complete else RegisterMemStatus.PREPARING

    def fail(self, reason: str, level: int = logging.ERROR) -> None:
        """Set the domain to FAILED, log the reason and tell the peers; only the first counts."""
        if self.failure:
            return
        self.failure = reason
        where = f"domain {self.name!r} (comm id {self.comm_id}) of cluster {self.cluster_id}"
        logger.log(level, "%s failed: %s", where, reason)
        for pair in self.pairs.values():
            for link in pair.links:
                if pair.hello is not None:
                    self._events.leave(link, self.leave_message(pair.hello))

    def leave_message(self, hello: DomainHello) -> Leave:
        """Return what the peer of a pair must know when this end leaves or fails."""
        return Leave(
            name=hello.name,
            token=hello.token,
            complete=self.is_complete and not self.failure,
            reason=self.failure[:_MAX_REASON],
        )

    # Linking

    def enter(self, pair: Pair, link: Link) -> None:
        """Record that both ends have entered a link for a pair."""
        pair.enter(link)
        self.notice_losses()
        self._check_complete()

    def notice_losses(self) -> None:
        """Fail, or wait for the pair to be linked again, where a link has ended."""
        for pair in self.pairs.values():
            link = pair.link
            if link is None or not link.lost.is_set() or self.failure:
                continue
            if self.is_complete:
                if link.died:  # The link table has logged the warning.
                    reason = f"the link to cluster {pair.peer_id} is gone: {link.reason}"
                    self.fail(reason, logging.INFO)
            elif not pair.has_left:
                self._unlink_pair(pair, f"its link ended before all were linked: {link.reason}")

    def _check_complete(self) -> None:
        if not self.failure and not self.unlinked:
            self.is_complete = True

    def _unlink_pair(self, pair: Pair, note: str) -> None:
        pair.reset(note)
        if pair.dials and not self.failure:
            # The peer may have called link again: its earlier domain must not end this link.
            pair.hello = self._hello_for(pair)
            self._events.dial(pair.peer_id)

    def _hello_for(self, pair: Pair) -> DomainHello:
        return replace(self.hello, acceptor=pair.peer_id, token=secrets.randbits(64))

    # What peers say

    def refusal(self, hello: DomainHello, peer_id: int, now: float) -> Refusal | None:
        """Return why this member does not link with a dialer of the same name, or None.

        A disagreement fails the domain unless it is complete.
        """
        if problem := self._disagreement(hello, peer_id):
            if not self.is_complete:
                self.fail(problem)
            return Refusal(LLMStatusCode.LLM_PARAM_INVALID, problem)
        if hello.acceptor != self.cluster_id:
            return wrong_acceptor(hello, self.cluster_id)
        if peer_id == self.cluster_id:
            problem = f"dialer and acceptor are both cluster {peer_id}; give the members other ids"
            return Refusal(LLMStatusCode.LLM_LINK_FAILED, problem)
        pair = self.pairs[peer_id]
        if pair.dials:
            return Refusal(LLMStatusCode.LLM_LINK_FAILED, "of a pair the lower rank accepts")
        if pair.hello is not None and pair.hello.token != hello.token:
            self._on_new_call(pair)
        if self.status(now) is RegisterMemStatus.FAILED:
            return not_yet(
                self.cluster_id, f"has a failed domain of that name: {self.failure[:_MAX_REASON]}"
            )
        if pair.has_left:
            return not_yet(self.cluster_id, "has not unlinked the domain that the peer has left")
        pair.hello = hello
        if pair.link is None:
            pair.note = "its dial was accepted and is not through yet"
        return None

    def _on_new_call(self, pair: Pair) -> None:
        """Note that the peer has called `link` again since it was accepted."""
        if self.is_complete:
            self.fail(f"cluster {pair.peer_id} has left the domain, and has called link again")
        elif not pair.has_left:
            pair.reset("it has called link again")

    def on_leave(self, message: Leave, peer_id: int, link: Link) -> bool:
        """Handle the end of the peer's part; return whether this end still needs the link."""
        pair = self.pairs.get(peer_id)
        if pair is None or pair.hello is None or pair.hello.token != message.token:
            return False
        if link not in pair.links:
            return False
        if self.failure:
            return True
        why = message.reason or "it was not linked to all members"
        if message.complete:
            pair.has_left = True
            pair.note = "it has left the domain"
        elif self.is_complete:
            self.fail(f"cluster {peer_id} has left the domain: {why}")
        else:
            self._unlink_pair(pair, f"it has left the domain: {why}")
            return False
        return True

    def is_related(self, hello: DomainHello, peer_id: int) -> bool:
        """Return whether a hello of the same name concerns this domain, even if it disagrees."""
        return peer_id in self.hello.ranks or self.cluster_id in hello.ranks

    def _disagreement(self, hello: DomainHello, peer_id: int) -> str:
        """Return how a hello of the same name differs, with both sides' values, or ""."""
        own = self.hello
        if hello.ranks == own.ranks and hello.rank == own.ranks.get(peer_id):
            return ""
        return (
            f"the members of domain {self.name!r} disagree: "
            f"cluster {self.cluster_id} has rank {own.rank} and cluster_rank_info {own.ranks}, "
            f"cluster {peer_id} has rank {hello.rank} and cluster_rank_info {hello.ranks}"
        )

    # Describing

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
            "listen_problem": self.listen_problem,
            "peers": [pair.describe() for pair in self.pairs.values()],
        }

    def _obstacles(self) -> str:
        notes = [
            f"cluster {pair.peer_id} (rank {pair.rank}): {pair.note}" for pair in self.unlinked
        ]
        if self.listen_problem:
            notes.append(f"cannot listen for members of higher rank: {self.listen_problem}")
        return "; ".join(notes)


def not_yet(cluster_id: int, what: str) -> Refusal:
    """Return the answer to a dialer that should dial again later."""
    return Refusal(LLMStatusCode.LLM_NOT_YET_LINK, f"cluster {cluster_id} {what}")


def wrong_acceptor(hello: DomainHello, cluster_id: int) -> Refusal:
    """Return the answer to a dialer that looks for another instance."""
    there = f"the instance there is cluster {cluster_id}"
    if hello.acceptor is not None:
        there = f"expected cluster {hello.acceptor}, but {there}; correct the rank table"
    return Refusal(LLMStatusCode.LLM_LINK_FAILED, there)
