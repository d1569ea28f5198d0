"""Dial the members of domains, again and again until the time limit of each domain."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final, final

from llm_datadist._domains.dial_rounds import DialRounds, NextRound
from llm_datadist._domains.rendezvous import Meeting, Outcome
from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._types import RegisterMemStatus

if TYPE_CHECKING:
    from llm_datadist._domains.accept_rounds import AcceptRounds
    from llm_datadist._domains.book import DomainBook
    from llm_datadist._domains.domain import Domain
    from llm_datadist._domains.pair import Pair
    from llm_datadist._domains.rendezvous import Rendezvous
    from llm_datadist._links import Leave, Link, LinkTable

__all__ = ["DomainDialer"]

logger = logging.getLogger("llm_datadist")

#: An attempt with less time than this may find no answer whatever the peer does.
_LEAST_SECONDS: Final = 0.1


@final
class DomainDialer:
    """Links the pairs that this member dials. Thread-safe; implements DomainEvents.

    Args:
        cluster_id: The instance's own id.
        book: Its domains.
        links: Its links.
        rendezvous: Meets one peer for one domain.
        accept_rounds: Serves the domains in which this member accepts.
    """

    def __init__(
        self,
        cluster_id: int,
        book: DomainBook,
        links: LinkTable,
        rendezvous: Rendezvous,
        accept_rounds: AcceptRounds,
    ) -> None:
        self._cluster_id = cluster_id
        self._book = book
        self._links = links
        self._rendezvous = rendezvous
        self._accept_rounds = accept_rounds
        self._rounds = DialRounds(self._run_round)

    def start(self, domain: Domain) -> None:
        """Begin to link the pairs of a new domain.

        Raises:
            LLMException: LLM_FAILED: no thread can be started.
        """
        if domain.accepts:
            self._rounds.wake(self._cluster_id)
        for pair in domain.pairs.values():
            if pair.dials:
                self._rounds.wake(pair.peer_id)

    def close(self) -> None:
        """Start no further round. Idempotent."""
        self._rounds.close()

    # Events of domains: called under the lock of the book

    def dial(self, peer_id: int) -> None:
        """Dial a peer again, whose link was lost."""
        try:
            self._rounds.wake(peer_id)
        except LLMException as error:
            logger.warning("cluster %d cannot be dialed now: %s", peer_id, error)

    def leave(self, link: Link, message: Leave) -> None:
        """Tell a peer that this end of a domain has failed."""
        self._links.leave(link, message)

    # Dialing

    def _run_round(self, peer_id: int) -> NextRound:
        """Meet a peer for each domain that waits for it."""
        progress = False
        try:
            if peer_id == self._cluster_id:
                return NextRound.LATER if self._accept_rounds.run_round() else NextRound.NONE
            for domain, pair in self._waiting_for(peer_id):
                outcome = self._meet(domain, pair)
                if outcome is Outcome.UNREACHED:
                    break
                progress |= outcome is Outcome.LINKED
        except LLMException as error:
            if error.status_code is LLMStatusCode.LLM_ENGINE_FINALIZED:
                return NextRound.NONE
            raise
        if not self._waiting_for(peer_id):
            return NextRound.NONE
        return NextRound.SOON if progress else NextRound.LATER

    def _waiting_for(self, peer_id: int) -> list[tuple[Domain, Pair]]:
        """Return the pairs with that peer that must be dialed, those with fewest attempts first."""
        now = time.monotonic()
        with self._book.locked():
            found = [
                (domain, pair)
                for domain in self._book.all()
                if (pair := domain.pairs.get(peer_id)) is not None
                and pair.dials
                and domain.status(now) is RegisterMemStatus.PREPARING
                and pair.link is None
            ]
        return sorted(found, key=lambda place: place[1].attempts)

    def _meet(self, domain: Domain, pair: Pair) -> Outcome:
        """Link a pair, or note why that is not possible now."""
        hello = pair.hello or domain.hello
        is_cut_short = domain.deadline - time.monotonic() < _LEAST_SECONDS
        known = [link for link in self._links.links() if link.cluster_id == pair.peer_id]
        meeting = Meeting(Outcome.UNREACHED)
        for link in known:
            meeting = self._join(domain, pair, link)
        if meeting.outcome is Outcome.UNREACHED:
            addresses = list(dict.fromkeys([*(link.address for link in known), *pair.addresses]))
            if not addresses:
                with self._book.locked():
                    domain.fail(f"the rank table has no address for rank {pair.rank}")
                return Outcome.REFUSED
            if not pair.attempts:
                places = ", ".join(f"{host} port {port}" for host, port in addresses)
                pair.note = f"no answer so far from {places}"
            meeting = self._rendezvous.dial(pair.peer_id, addresses, hello, domain.deadline)
            if meeting.link is not None:
                meeting = self._join(domain, pair, meeting.link)
        with self._book.locked():
            is_wanted = self._book.has(domain) and not domain.failure and pair.link is None
            if is_wanted and meeting.outcome is not Outcome.LINKED:
                if meeting.outcome is not Outcome.UNREACHED or not (pair.attempts and is_cut_short):
                    pair.note = meeting.reason
                pair.attempts += 1
                if meeting.outcome is Outcome.REFUSED:
                    domain.fail(meeting.reason)
        return meeting.outcome

    def _join(self, domain: Domain, pair: Pair, link: Link) -> Meeting:
        """Ask the peer to enter a link for the domain, and enter it at this end if it has."""
        hello = pair.hello or domain.hello
        with self._book.locked():
            if pair.trial is not link:
                pair.has_left = False
            pair.trial = link
        meeting = self._rendezvous.join(link, hello, domain.deadline)
        with self._book.locked():
            is_wanted = self._book.has(domain) and not domain.failure and pair.trial is link
            if is_wanted and meeting.outcome is Outcome.LINKED:
                domain.enter(pair, link)
                return meeting
            if is_wanted and meeting.outcome is Outcome.UNREACHED and link.alive:
                return meeting  # the peer may have entered it: the next attempt uses it again
            if pair.trial is link:
                pair.trial = None
        if meeting.outcome is Outcome.LINKED:  # only at the peer
            self._links.leave(link, domain.leave_message(hello))
            meeting = Meeting(Outcome.NOT_YET, "the peer has left the domain")
        self._links.release(link, hello.holder)
        return meeting
