"""Work of a member that waits to be dialed: bind a taken port again, find out why no dial comes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, final

from msgspec.structs import replace

from llm_datadist._domains.rendezvous import Outcome
from llm_datadist._types import RegisterMemStatus

if TYPE_CHECKING:
    from llm_datadist._domains.book import DomainBook
    from llm_datadist._domains.domain import Domain
    from llm_datadist._domains.domain_listener import DomainListener
    from llm_datadist._domains.pair import Pair
    from llm_datadist._domains.rendezvous import Meeting, Rendezvous
    from llm_datadist._links import DomainHello
    from llm_datadist._protocol.rank_table import Address

__all__ = ["AcceptRounds"]

_NOT_DIALED: Final = "it has not dialed yet"


@final
class AcceptRounds:
    """Serves the domains in which this member accepts, until all of them are linked or over.

    A port that is taken is bound as soon as it is free. If the maps of two members disagree so that
    both accept, neither dials: so after a third and two thirds of the time limit this member dials
    too, only to compare the maps. If its own address is taken, it dials that to name the instance
    that listens there.

    Args:
        cluster_id: The instance's own id.
        book: Its domains.
        rendezvous: Dials peers.
        listener: Where other members find this one.
    """

    def __init__(
        self, cluster_id: int, book: DomainBook, rendezvous: Rendezvous, listener: DomainListener
    ) -> None:
        self._cluster_id = cluster_id
        self._book = book
        self._rendezvous = rendezvous
        self._listener = listener

    def run_round(self) -> bool:
        """Serve each waiting domain once; return whether one still waits."""
        for domain in self._waiting():
            if domain.listen_problem and domain.own_addresses:
                problem = self._listener.open(domain.own_addresses)
                with self._book.locked():
                    domain.listen_problem = problem
            if domain.probe_times and time.monotonic() >= domain.probe_times[0]:
                domain.probe_times.pop(0)
                self._look(domain)
        return bool(self._waiting())

    def _waiting(self) -> list[Domain]:
        now = time.monotonic()
        with self._book.locked():
            return [
                domain
                for domain in self._book.all()
                if domain.status(now) is RegisterMemStatus.PREPARING
                and any(not pair.dials for pair in domain.unlinked)
            ]

    def _look(self, domain: Domain) -> None:
        if domain.listen_problem and domain.own_addresses:
            found = self._compare(self._cluster_id, domain.own_addresses, domain.hello, domain)
            with self._book.locked():
                domain.listen_problem += f"; what listens there: {found.reason}"
                self._judge(domain, found)
        for pair in domain.unlinked:
            if not pair.dials and pair.addresses:
                hello = replace(domain.hello, acceptor=pair.peer_id)
                found = self._compare(pair.peer_id, pair.addresses, hello, domain)
                with self._book.locked():
                    self._note(pair, found)
                    if pair.link is None:
                        self._judge(domain, found)

    def _compare(
        self, peer_id: int, addresses: tuple[Address, ...], hello: DomainHello, domain: Domain
    ) -> Meeting:
        return self._rendezvous.compare(peer_id, addresses, hello, domain.deadline)

    @staticmethod
    def _note(pair: Pair, found: Meeting) -> None:
        if pair.link is None and pair.hello is None:
            pair.note = f"{_NOT_DIALED}; dialed to compare the maps: {found.reason}"

    def _judge(self, domain: Domain, found: Meeting) -> None:
        is_wanted = self._book.has(domain) and not domain.is_complete
        if is_wanted and found.outcome is Outcome.REFUSED:
            domain.fail(found.reason)
