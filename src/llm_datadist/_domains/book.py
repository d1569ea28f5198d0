"""The domains of one instance, with the lock that guards them."""

from __future__ import annotations

import contextlib
import itertools
import threading
from typing import TYPE_CHECKING, Final, final

from llm_datadist._errors import LLMStatusCode, fail, finalized
from llm_datadist._logs import later
from llm_datadist._types import RegisterMemStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_datadist._domains.domain import Domain
    from llm_datadist._links import DomainHello

__all__ = ["MAX_DOMAINS", "DomainBook"]

MAX_DOMAINS: Final = 512
_MAX_UNEXPECTED: Final = 1024


@final
class DomainBook:
    """Finds domains by comm id and by name.

    All methods and attributes, and all methods of its domains, need the lock: `with book.locked()`.
    It is never held while a caller waits for the link table or a peer.

    Attributes:
        is_closed: Whether the instance was finalized.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_id: dict[int, Domain] = {}
        self._by_name: dict[str, Domain] = {}
        self._unexpected: dict[int, DomainHello] = {}  # last hello of each peer for an unknown name
        self._comm_ids = itertools.count(1)
        self.is_closed = False

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock; delay log records until it is released."""
        with later(), self._lock:
            yield

    def check_admission(self, name: str, now: float) -> None:
        """Check that a domain of that name may be added; a failed domain does not need its name.

        Raises:
            LLMException: LLM_ENGINE_FINALIZED; LLM_PARAM_INVALID: the name is in use;
                LLM_CLUSTER_NUM_EXCEED_LIMIT.
        """
        if self.is_closed:
            raise finalized("link")
        same = self._by_name.get(name)
        if same is not None and same.status(now) is not RegisterMemStatus.FAILED:
            raise fail(
                LLMStatusCode.LLM_PARAM_INVALID,
                "link",
                f"comm_name {name!r} is the name of domain {same.comm_id}",
                "unlink that domain first, or choose another name",
            )
        if len(self._by_id) >= MAX_DOMAINS:
            raise fail(
                LLMStatusCode.LLM_CLUSTER_NUM_EXCEED_LIMIT,
                "link",
                f"there are {MAX_DOMAINS} domains",
                "unlink domains that are no longer used, failed ones as well",
            )

    def next_comm_id(self) -> int:
        """Return the comm id of a new domain."""
        return next(self._comm_ids)

    def add(self, domain: Domain) -> None:
        """Add a domain; its name belongs to it from now on."""
        self._by_id[domain.comm_id] = self._by_name[domain.name] = domain

    def remove(self, domain: Domain) -> None:
        """Remove a domain, and its name unless a later domain has it."""
        del self._by_id[domain.comm_id]
        if self._by_name.get(domain.name) is domain:
            del self._by_name[domain.name]

    def close(self) -> list[Domain]:
        """Remove and return all domains, and admit no further one. Idempotent."""
        self.is_closed = True
        domains = list(self._by_id.values())
        self._by_id.clear()
        self._by_name.clear()
        return domains

    def find(self, operation: str, comm_id: int) -> Domain:
        """Return the domain with that comm id; LLM_PARAM_INVALID when there is none."""
        domain = self._by_id.get(comm_id)
        if domain is None:
            raise fail(
                LLMStatusCode.LLM_PARAM_INVALID,
                operation,
                f"there is no domain with comm_id {comm_id}",
                "use a value that link returned and that has not been unlinked",
            )
        return domain

    def named(self, name: str) -> Domain | None:
        """Return the last domain of that name, or None."""
        return self._by_name.get(name)

    def has(self, domain: Domain) -> bool:
        """Return whether a domain has not been unlinked."""
        return self._by_id.get(domain.comm_id) is domain

    def all(self) -> list[Domain]:
        """Return all domains in the order of their calls."""
        return list(self._by_id.values())

    # Peers that dial for other domains

    def remember_unexpected(self, hello: DomainHello, peer_id: int) -> None:
        """Note that a peer has dialed for a domain that this member does not have."""
        if len(self._unexpected) >= _MAX_UNEXPECTED:
            del self._unexpected[next(iter(self._unexpected))]
        self._unexpected[peer_id] = hello

    def name_unexpected(self, domain: Domain) -> None:
        """Note at the pairs of a domain which other domain their members have dialed for."""
        for pair in domain.unlinked:
            other = self._unexpected.get(pair.peer_id)
            if other is not None and not pair.dials and other.name not in self._by_name:
                pair.note = (
                    f"it has not dialed for this domain, but for {other.name!r} with "
                    f"cluster_rank_info {other.ranks}"
                )

    def instead_of(self, name: str, peer_id: int) -> str:
        """Return why a dial finds no domain of that name, and which ones wait for the peer."""
        others = [
            f"{domain.name!r} with cluster_rank_info {domain.hello.ranks}"
            for domain in self._by_id.values()
            if any(pair.peer_id == peer_id and not pair.dials for pair in domain.unlinked)
        ]
        expected = f"; it expects the peer in {', '.join(others[:3])}" if others else ""
        return f"has not called link for domain {name!r}{expected}"
