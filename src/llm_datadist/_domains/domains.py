"""Domains: two-sided linking, where every member calls `link` with the same name and map.

Of each pair the higher rank dials. Its hello contains the name of the domain, the map, and a token
of its own call of `link`. The lower rank accepts if it has made the same call, answers "not yet" if
it has made none (the dialer then retries until its time limit), and fails the domain at both ends
if the two calls disagree. So the order of the calls at the two ends does not matter.

A pair shares one link: it is made for the first domain, and each domain holds it until `unlink`.

Source: api.md 4.6.
"""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING, Final, final

from llm_datadist._domains.arguments import check_comm_id, check_terms
from llm_datadist._domains.dial_rounds import DialRounds
from llm_datadist._domains.domain import Domain, Pair
from llm_datadist._domains.domain_listener import DomainListener
from llm_datadist._domains.rendezvous import Outcome, Rendezvous
from llm_datadist._errors import LLMException, LLMStatusCode, fail, finalized
from llm_datadist._links import Refusal
from llm_datadist._logs import later
from llm_datadist._types import RegisterMemStatus

if TYPE_CHECKING:
    from llm_datadist._domains.arguments import Terms
    from llm_datadist._domains.rendezvous import Meeting
    from llm_datadist._links import DomainHello, Link, LinkTable
    from llm_datadist._options.settings import Config
    from llm_datadist._protocol.rank_table import Address

__all__ = ["MAX_DOMAINS", "Domains"]

MAX_DOMAINS: Final = 512
_MAX_UNEXPECTED: Final = 1024


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
        self._linking = threading.Lock()  # held by link(); taken before _lock
        self._lock = threading.Lock()  # guards the fields below; never held while calling links
        self._domains: dict[int, Domain] = {}
        self._by_name: dict[str, Domain] = {}
        self._unexpected: dict[int, DomainHello] = {}  # last hello of each peer for an unknown name
        self._comm_ids = itertools.count(1)
        self._closed = False
        self._listener = DomainListener(links)
        self._rendezvous = Rendezvous(links, config.link_total_time_s / config.link_retry_count)
        self._dial_rounds = DialRounds(self._run_round)
        links.hooks.on_domain_hello = self._answer
        links.hooks.on_domain_linked = self._accepted

    def link(self, comm_name: str, cluster_rank_info: dict[int, int], rank_table: str) -> int:
        """Join a domain; return its comm id without waiting for the set-up.

        Args:
            comm_name: 1..127 characters, not the name of another domain of this instance.
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
        with later(), self._linking:
            with later(), self._lock:
                self._check_admission(terms.name)
            # A member that only dials listens too: in its next domain another rank may be higher.
            deaf = self._listener.open(own_addresses)
            with later(), self._lock:
                self._check_admission(terms.name)
                domain = Domain(
                    next(self._comm_ids),
                    self._cluster_id,
                    terms.name,
                    terms.ranks,
                    pairs,
                    time.monotonic() + self._config.link_total_time_s,
                )
                self._domains[domain.comm_id] = self._by_name[domain.name] = domain
                if deaf and not self._listener.addresses and not all(p.dials for p in pairs):
                    domain.fail(f"cannot listen for members of higher rank: {deaf}")
        try:
            for pair in pairs:
                if pair.dials:
                    self._dial_rounds.wake(pair.peer_id)
        except BaseException:
            self.unlink(domain.comm_id)
            raise
        return domain.comm_id

    def unlink(self, comm_id: int) -> None:
        """Leave a domain at this end; links that nothing else holds are unlinked.

        Raises:
            TypeError: comm_id is not an integer.
            LLMException: LLM_PARAM_INVALID: there is no such domain.
        """
        number = check_comm_id(comm_id)
        with later(), self._lock:
            domain = self._find("unlink", number)
            del self._domains[number], self._by_name[domain.name]
            held = [(pair.link, pair.hello) for pair in domain.pairs.values()]
        for link, hello in held:
            if link is not None and hello is not None:
                self._links.release(link, hello.holder)

    def query_register_mem_status(self, comm_id: int) -> RegisterMemStatus:
        """Return OK once every pair is linked, PREPARING before; FAILED is final.

        Raises:
            TypeError: comm_id is not an integer.
            LLMException: LLM_PARAM_INVALID: there is no such domain.
        """
        number = check_comm_id(comm_id)
        with later(), self._lock:
            domain = self._find("query_register_mem_status", number)
            self._name_unexpected(domain)
            return domain.status(time.monotonic())

    def describe_domain(self, comm_id: int) -> dict[str, object]:
        """Return the facts of a domain: members, states, why it failed. *(extension)*

        Raises:
            TypeError: comm_id is not an integer.
            LLMException: LLM_PARAM_INVALID: there is no such domain.
        """
        number = check_comm_id(comm_id)
        with later(), self._lock:
            domain = self._find("describe_domain", number)
            self._name_unexpected(domain)
            facts = domain.describe(time.monotonic())
        return {**facts, "listening": self._listener.addresses}

    def close(self) -> None:
        """Remove all domains and stop dialing; the link table ends the links. Idempotent."""
        with later(), self._lock:
            self._closed = True
            self._domains.clear()
            self._by_name.clear()
        self._dial_rounds.close()

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

    def _check_admission(self, name: str) -> None:
        if self._closed:
            raise finalized("link")
        if (same := self._by_name.get(name)) is not None:
            raise fail(
                LLMStatusCode.LLM_PARAM_INVALID,
                "link",
                f"comm_name {name!r} is the name of domain {same.comm_id}",
                "unlink that domain first, or choose another name",
            )
        if len(self._domains) >= MAX_DOMAINS:
            raise fail(
                LLMStatusCode.LLM_CLUSTER_NUM_EXCEED_LIMIT,
                "link",
                f"there are {MAX_DOMAINS} domains",
                "unlink domains that are no longer used",
            )

    def _find(self, operation: str, comm_id: int) -> Domain:
        domain = self._domains.get(comm_id)
        if domain is None:
            raise fail(
                LLMStatusCode.LLM_PARAM_INVALID,
                operation,
                f"there is no domain with comm_id {comm_id}",
                "use a value that link returned and that has not been unlinked",
            )
        return domain

    # Dialing, on the threads of DialRounds.

    def _run_round(self, peer_id: int) -> bool:
        """Dial a peer for each domain that waits for it; return whether another round is needed."""
        try:
            for domain, pair in self._waiting_for(peer_id):
                if self._meet(domain, pair) is Outcome.UNREACHED:
                    break
        except LLMException as error:
            if error.status_code is LLMStatusCode.LLM_ENGINE_FINALIZED:
                return False
            raise
        return bool(self._waiting_for(peer_id))

    def _waiting_for(self, peer_id: int) -> list[tuple[Domain, Pair]]:
        """Return the pairs with that peer that must be dialed, those with fewest attempts first."""
        now = time.monotonic()
        with later(), self._lock:
            found = [
                (domain, pair)
                for domain in self._domains.values()
                if (pair := domain.pairs.get(peer_id)) is not None
                and pair.dials
                and pair.link is None
                and domain.status(now) is RegisterMemStatus.PREPARING
            ]
        return sorted(found, key=lambda place: place[1].attempts)

    def _meet(self, domain: Domain, pair: Pair) -> Outcome:
        hello = pair.hello or domain.hello
        known = [link for link in self._links.links() if link.cluster_id == pair.peer_id]
        addresses = list(dict.fromkeys([*(link.address for link in known), *pair.addresses]))
        if not addresses:
            with later(), self._lock:
                domain.fail(f"the rank table has no address for rank {pair.rank}")
            return Outcome.REFUSED
        if not pair.attempts:
            places = ", ".join(f"{host} port {port}" for host, port in addresses)
            pair.note = f"no answer so far from {places}"
        # Holding a shared link first prevents that an unlink of its last other domain ends it after
        # the hello has announced its use to the peer.
        held = {link for link in known if self._links.hold(link, hello.holder)}
        meeting = self._rendezvous.meet(pair.peer_id, addresses, hello, domain.deadline)
        wanted = self._note(domain, pair, meeting)
        if meeting.link is not None:
            held.add(meeting.link)
        for link in held:
            if not wanted or link is not meeting.link:
                self._links.release(link, hello.holder)
        return meeting.outcome

    def _note(self, domain: Domain, pair: Pair, meeting: Meeting) -> bool:
        """Record the outcome of a dial; return whether the domain still needs it."""
        with later(), self._lock:
            if self._domains.get(domain.comm_id) is not domain or domain.failure:
                return False
            if meeting.outcome is Outcome.LINKED:
                pair.link = meeting.link
            else:
                pair.attempts += 1
            pair.note = meeting.reason
            if meeting.outcome is Outcome.REFUSED:
                domain.fail(meeting.reason)
            return True

    # Accepting, on the link table's worker threads.

    def _answer(self, hello: DomainHello, peer_id: int) -> Refusal | None:
        """Answer a dialer's hello: None accepts."""
        with later(), self._lock:
            domain = self._by_name.get(hello.name)
            if domain is not None and not domain.is_related(hello, peer_id):
                return self._wrong_acceptor(hello)
            if domain is None:
                self._remember_unexpected(hello, peer_id)
                if hello.acceptor != self._cluster_id:
                    return self._wrong_acceptor(hello)
                return self._not_yet(self._instead_of(hello.name, peer_id))
            if problem := domain.disagreement(hello, peer_id):
                domain.fail(problem)
                return Refusal(LLMStatusCode.LLM_PARAM_INVALID, problem)
            if hello.acceptor != self._cluster_id:
                return self._wrong_acceptor(hello)
            pair = domain.pairs[peer_id]
            if pair.link is not None and pair.hello is not None and pair.hello.token != hello.token:
                domain.fail(f"cluster {peer_id} has left the domain, and has called link again")
            if domain.status(time.monotonic()) is RegisterMemStatus.FAILED:
                return self._not_yet(f"has a failed domain of that name: {domain.failure}")
            pair.hello = hello
            pair.note = "its dial was accepted and is not through yet"
            return None

    def _accepted(self, hello: DomainHello, link: Link) -> None:
        """Record that the link for an accepted domain is up and held."""
        with later(), self._lock:
            domain = self._by_name.get(hello.name)
            pair = None if domain is None else domain.pairs.get(link.cluster_id)
            wanted = pair is not None and pair.hello is not None and pair.hello.token == hello.token
            if pair is not None and wanted:
                pair.link = link
                pair.note = ""
        if not wanted:
            self._links.release(link, hello.holder)

    def _wrong_acceptor(self, hello: DomainHello) -> Refusal:
        return Refusal(
            LLMStatusCode.LLM_LINK_FAILED,
            f"expected cluster {hello.acceptor}, but the instance there is cluster "
            f"{self._cluster_id}; correct the rank table",
        )

    def _not_yet(self, what: str) -> Refusal:
        return Refusal(LLMStatusCode.LLM_NOT_YET_LINK, f"cluster {self._cluster_id} {what}")

    def _instead_of(self, name: str, peer_id: int) -> str:
        """Return that there is no such domain, and for which ones this member expects that peer."""
        others = [
            f"{domain.name!r} with cluster_rank_info {domain.hello.ranks}"
            for domain in self._domains.values()
            if any(pair.peer_id == peer_id and not pair.dials for pair in domain.unlinked)
        ]
        expected = f"; it expects the peer in {', '.join(others[:3])}" if others else ""
        return f"has not called link for domain {name!r}{expected}"

    def _remember_unexpected(self, hello: DomainHello, peer_id: int) -> None:
        if len(self._unexpected) >= _MAX_UNEXPECTED:
            del self._unexpected[next(iter(self._unexpected))]
        self._unexpected[peer_id] = hello

    def _name_unexpected(self, domain: Domain) -> None:
        """Note at the pairs of a domain which other domain their members have dialed for."""
        for pair in domain.unlinked:
            other = self._unexpected.get(pair.peer_id)
            if other is not None and not pair.dials and other.name not in self._by_name:
                pair.note = (
                    f"it has not dialed for this domain, but for {other.name!r} with "
                    f"cluster_rank_info {other.ranks}"
                )
