"""Domains: two-sided linking, where every member calls `link` with the same name and map.

Of each pair the higher rank dials. Its hello contains the name of the domain, the map, and a token
of its own call of `link`. The lower rank accepts if it has made the same call, answers "not yet" if
it has made none (the dialer then retries until its time limit), and fails the domain at both ends
if the two calls disagree. So the order of the calls at the two ends does not matter.

A pair shares one link: it is made for the first domain, and each domain holds it until `unlink`. A
domain is entered over the link that is up: see `domain`.

Source: api.md 4.6.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, final

from llm_datadist._domains.accept_rounds import AcceptRounds
from llm_datadist._domains.arguments import check_comm_id, check_terms
from llm_datadist._domains.book import MAX_DOMAINS, DomainBook
from llm_datadist._domains.domain import Domain
from llm_datadist._domains.domain_acceptor import DomainAcceptor
from llm_datadist._domains.domain_dialer import DomainDialer
from llm_datadist._domains.domain_listener import DomainListener
from llm_datadist._domains.pair import Pair
from llm_datadist._domains.rendezvous import Rendezvous

if TYPE_CHECKING:
    from llm_datadist._domains.arguments import Terms
    from llm_datadist._links import Link, LinkTable
    from llm_datadist._options.settings import Config
    from llm_datadist._protocol.rank_table import Address
    from llm_datadist._types import RegisterMemStatus

__all__ = ["MAX_DOMAINS", "Domains"]


@final
class Domains:
    """The domains of one instance. Thread-safe; no call waits for a peer.

    Args:
        cluster_id: The instance's own id.
        config: Gives link_base_port, link_total_time_s and link_retry_count.
        links: The instance's links; this sets their domain hooks.
    """

    def __init__(self, cluster_id: int, config: Config, links: LinkTable) -> None:
        self._cluster_id = cluster_id
        self._config = config
        self._links = links
        self._linking = threading.Lock()  # held by link()
        self._book = DomainBook()
        self._listener = DomainListener(links)
        rendezvous = Rendezvous(links, config.link_total_time_s / config.link_retry_count)
        accept_rounds = AcceptRounds(cluster_id, self._book, rendezvous, self._listener)
        self._dialer = DomainDialer(cluster_id, self._book, links, rendezvous, accept_rounds)
        acceptor = DomainAcceptor(cluster_id, self._book)
        links.hooks.on_domain_hello = acceptor.on_hello
        links.hooks.on_domain_join = acceptor.on_join
        links.hooks.on_domain_leave = acceptor.on_leave
        links.hooks.on_lost = acceptor.on_lost

    def link(self, comm_name: str, cluster_rank_info: dict[int, int], rank_table: str) -> int:
        """Join a domain; return its comm id without waiting for the set-up.

        Args:
            comm_name: 1..127 characters, not the name of another domain of this instance unless
                that has failed.
            cluster_rank_info: Cluster id to rank, 2..4 entries, ranks ascending, own id among them.
            rank_table: JSON text with the addresses of the ranks.

        Raises:
            TypeError: A wrong type.
            LLMException: LLM_PARAM_INVALID: another error in the arguments;
                LLM_CLUSTER_NUM_EXCEED_LIMIT: there are 512 domains; LLM_ENGINE_FINALIZED;
                LLM_FAILED: no thread can be started.
        """
        terms = check_terms(self._cluster_id, comm_name, cluster_rank_info, rank_table)
        pairs, own_addresses = self._pairs(terms)
        with self._linking:
            with self._book.locked():
                self._book.check_admission(terms.name, time.monotonic())
            # A member that only dials listens too: in its next domain another rank may be higher.
            problem = self._listener.open(own_addresses)
            with self._book.locked():
                self._book.check_admission(terms.name, time.monotonic())
                domain = Domain(
                    self._book.next_comm_id(),
                    self._cluster_id,
                    terms.name,
                    terms.ranks,
                    pairs,
                    time.monotonic(),
                    self._config.link_total_time_s,
                    self._dialer,
                    own_addresses,
                )
                self._book.add(domain)
                if domain.accepts:
                    domain.listen_problem = problem
                    if not own_addresses and not self._listener.addresses:
                        domain.fail(f"cannot listen for members of higher rank: {problem}")
        try:
            self._dialer.start(domain)
        except BaseException:
            self._end(domain.comm_id)
            raise
        return domain.comm_id

    def unlink(self, comm_id: int) -> None:
        """Leave a domain at this end; links that nothing else holds are unlinked.

        Raises:
            TypeError: comm_id is not an integer.
            LLMException: LLM_PARAM_INVALID: there is no such domain; LLM_FAILED: called on the
                library's own thread, by a log handler. Nothing has changed then.
        """
        number = check_comm_id(comm_id)
        self._links.check_thread("unlink")
        self._end(number)

    def _end(self, comm_id: int) -> None:
        with self._book.locked():
            domain = self._book.find("unlink", comm_id)
            self._book.remove(domain)
            held = self._leave(domain)
        for link, holder in held:
            self._links.release(link, holder)

    def _leave(self, domain: Domain) -> list[tuple[Link, str]]:
        """Tell the peers of a domain that this end leaves; return what it holds."""
        domain.notice_losses()
        held = [
            (link, pair.hello)
            for pair in domain.pairs.values()
            for link in pair.links
            if pair.hello is not None
        ]
        for link, hello in held:
            self._links.leave(link, domain.leave_message(hello))
        return [(link, hello.holder) for link, hello in held]

    def query_register_mem_status(self, comm_id: int) -> RegisterMemStatus:
        """Return OK once every pair is linked, PREPARING before; FAILED is final.

        Raises:
            TypeError: comm_id is not an integer.
            LLMException: LLM_PARAM_INVALID: there is no such domain.
        """
        number = check_comm_id(comm_id)
        with self._book.locked():
            domain = self._book.find("query_register_mem_status", number)
            self._book.name_unexpected(domain)
            return domain.status(time.monotonic())

    def describe_domain(self, comm_id: int) -> dict[str, object]:
        """Return the facts of a domain: members, states, why it failed. *(extension)*

        Raises:
            TypeError: comm_id is not an integer.
            LLMException: LLM_PARAM_INVALID: there is no such domain.
        """
        number = check_comm_id(comm_id)
        with self._book.locked():
            domain = self._book.find("describe_domain", number)
            self._book.name_unexpected(domain)
            facts = domain.describe(time.monotonic())
        return {**facts, "listening": self._listener.addresses}

    def close(self) -> None:
        """Remove all domains and stop dialing; the link table ends the links. Idempotent."""
        with self._book.locked():
            for domain in self._book.close():
                self._leave(domain)
        self._dialer.close()

    def _pairs(self, terms: Terms) -> tuple[list[Pair], tuple[Address, ...]]:
        """Return the pairs of a domain, and the addresses at which this member may listen.

        If the table has several members at one address (device 0 of this host, for example), the
        address is left to the lower rank, which must listen in any case.
        """
        addresses = {
            rank: terms.table.addresses(rank, self._config.link_base_port)
            for rank in terms.ranks.values()
        }
        own_rank = terms.ranks[self._cluster_id]
        pairs = [
            Pair(peer_id, rank, addresses[rank], dials=rank < own_rank)
            for peer_id, rank in terms.ranks.items()
            if rank != own_rank
        ]
        taken = {address for pair in pairs if pair.dials for address in pair.addresses}
        return pairs, tuple(place for place in addresses[own_rank] if place not in taken)
