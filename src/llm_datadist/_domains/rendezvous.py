"""Dial the addresses of one peer for a domain, join it, and interpret the outcome."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, final

from llm_datadist._errors import LLMStatusCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_datadist._links import DomainHello, Link, LinkResult, LinkTable
    from llm_datadist._protocol.rank_table import Address

__all__ = ["Meeting", "Outcome", "Rendezvous"]

_FIRST_SHARE_SECONDS: Final = 1.0
_LONGEST_ANSWER_SECONDS: Final = 10.0
_LONGEST_SETUP_SECONDS: Final = 30.0  # as long as an acceptor waits for its dialer


class Outcome(Enum):
    """Outcome of a dial or a join."""

    LINKED = auto()
    NOT_YET = auto()  # the peer answered, and has not made the same call of `link` so far
    REFUSED = auto()  # the peer answered that this domain is impossible
    UNREACHED = auto()  # no answer, another instance, or a problem that may pass


_NOT_YET: Final = frozenset({LLMStatusCode.LLM_NOT_YET_LINK, LLMStatusCode.LLM_PROCESSING_LINK})


@final
@dataclass(frozen=True, slots=True)
class Meeting:
    """Outcome of dialing or joining a peer, with the link or the reason."""

    outcome: Outcome
    reason: str = ""
    link: Link | None = None


@final
class Rendezvous:
    """Dials the peers of one instance's domains, and joins them. One call at a time per peer.

    A rank table may list addresses that this host cannot reach, and does not say which one the peer
    could bind. So each address has a short time to answer at first, if there are several, and a
    longer one in each later round; an address that has answered is dialed first from then on. A
    peer that has answered is not cut: on a busy machine it may need long to complete a link.

    Args:
        links: The link table.
        attempt_seconds: Limit for the first answer: link_total_time / link_retry_count.
    """

    def __init__(self, links: LinkTable, attempt_seconds: float) -> None:
        self._links = links
        self._longest = min(attempt_seconds, _LONGEST_ANSWER_SECONDS)
        self._answered: dict[int, Address] = {}
        self._misses: Counter[int] = Counter()

    def dial(
        self, peer_id: int, addresses: Sequence[Address], hello: DomainHello, deadline: float
    ) -> Meeting:
        """Dial the peer at each of its addresses until one answers; return the link, held.

        Args:
            peer_id: Cluster id of the peer.
            addresses: At least one.
            hello: The domain for which the peer is dialed.
            deadline: On the clock of `time.monotonic`.

        Raises:
            LLMException: LLM_ENGINE_FINALIZED.
        """
        longest = self._longest
        if len(addresses) > 1:
            longest = min(longest, _FIRST_SHARE_SECONDS * 2 ** min(self._misses[peer_id], 8))
        misses = []
        for address in self._in_order(peer_id, addresses):
            seconds = min(_LONGEST_SETUP_SECONDS, deadline - time.monotonic())
            if seconds <= 0:
                break
            result = self._links.dial_peer(
                [address], 1000 * seconds, domain=hello, answer_timeout_ms=1000 * longest
            )
            meeting = _judge(result)
            if meeting.outcome is not Outcome.UNREACHED:
                self._answered[peer_id] = address
                del self._misses[peer_id]
                return meeting
            misses.append(meeting.reason)
        self._misses[peer_id] += 1
        return Meeting(Outcome.UNREACHED, "; ".join(misses) or "no time left to dial it")

    def compare(
        self, peer_id: int, addresses: Sequence[Address], hello: DomainHello, deadline: float
    ) -> Meeting:
        """Dial a peer only to compare the two ends' maps of a domain; no link is made.

        REFUSED when the two ends disagree; never LINKED.

        Args:
            peer_id: Cluster id of the peer.
            addresses: At least one.
            hello: The domain.
            deadline: On the clock of `time.monotonic`.

        Raises:
            LLMException: LLM_ENGINE_FINALIZED.
        """
        meeting = Meeting(Outcome.UNREACHED, "there is no link to it")
        for link in [link for link in self._links.links() if link.cluster_id == peer_id]:
            meeting = self.join(link, hello, deadline)
            self._links.release(link, hello.holder)
        if meeting.outcome is not Outcome.REFUSED:
            meeting = self.dial(peer_id, addresses, hello, deadline)
        if meeting.link is not None:
            self._links.release(meeting.link, hello.holder)
            return Meeting(Outcome.NOT_YET, "it accepts the dial")
        return meeting

    def join(self, link: Link, hello: DomainHello, deadline: float) -> Meeting:
        """Hold a link for a domain, and ask the peer to enter it.

        UNREACHED without its answer: it may have entered the link all the same.

        Args:
            link: A link to the peer.
            hello: The domain.
            deadline: On the clock of `time.monotonic`.

        Raises:
            LLMException: LLM_ENGINE_FINALIZED.
        """
        seconds = min(_LONGEST_ANSWER_SECONDS, deadline - time.monotonic())
        if seconds <= 0:
            return Meeting(Outcome.UNREACHED, "no time left to join it")
        return _judge(self._links.join(link, hello, 1000 * seconds))

    def _in_order(self, peer_id: int, addresses: Sequence[Address]) -> list[Address]:
        answered = self._answered.get(peer_id)
        return sorted(addresses, key=lambda address: address != answered)


def _judge(result: LinkResult) -> Meeting:
    if result.is_ok:
        return Meeting(Outcome.LINKED, link=result.link)
    if result.status in _NOT_YET:
        return Meeting(Outcome.NOT_YET, result.reason)
    if result.status is LLMStatusCode.LLM_PARAM_INVALID:
        return Meeting(Outcome.REFUSED, result.reason)
    return Meeting(Outcome.UNREACHED, result.reason)
