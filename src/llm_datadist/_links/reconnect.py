"""Re-establish lost links that `link_clusters` of this end made. Loop thread only.

When such a link is lost, for whatever reason, its peer is dialed in the background at the addresses
where `link_clusters` reached it, until it answers with its old cluster id: the same instance after
an interruption, or a new one in its place. An instance with another cluster id is not linked. The
dialing stops without a link when either end calls `unlink_clusters`, when the instance changes its
role or is finalized, and when another link to that cluster id is made. It never delays a call.

A peer may have unlinked while the two could not reach each other. The hello names the lost link, so
that the peer can refuse it then.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Final, final

from llm_datadist._control.backoff import Backoff
from llm_datadist._control.deadline import Deadline
from llm_datadist._control.sockets import printed
from llm_datadist._errors import LLMStatusCode
from llm_datadist._links.context import CLUSTERS
from llm_datadist._links.dial_request import DialRequest
from llm_datadist._links.dialer import dial
from llm_datadist._links.state import Relink

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_datadist._links.context import LinkContext
    from llm_datadist._links.lifecycle import LinkLifecycle
    from llm_datadist._links.link import Link

__all__ = ["Reconnector"]

logger = logging.getLogger("llm_datadist")

_FIRST_PAUSE: Final = 0.05
#: Between dials of a peer that cannot be reached, and of one that answers and refuses.
_LONGEST_PAUSE: Final = 5.0
_LONGEST_REFUSED_PAUSE: Final = 30.0
#: Limit for the dials of all lost links together.
_DIALS_PER_SECOND: Final = 100
#: Lost SYNs are retransmitted too late, so it is better to connect again.
_CONNECT_SECONDS: Final = 2.0
#: A frozen peer's kernel accepts connections; a pending dial is answered as soon as the peer thaws.
_DIAL_SECONDS: Final = 10.0


@final
class Reconnector:
    """Re-establishes the lost links of one instance."""

    def __init__(self, context: LinkContext, lifecycle: LinkLifecycle) -> None:
        self._context = context
        self._pending = context.index.relinks
        self._lifecycle = lifecycle
        self._num_reconnects: Counter[int] = Counter()
        self._closed = False

    def num_reconnects(self, cluster_id: int) -> int:
        """Return how many links to that cluster id were re-established. Any thread."""
        return self._num_reconnects[cluster_id]

    @property
    def num_relinked(self) -> int:
        """How many links were re-established. Any thread."""
        return sum(list(self._num_reconnects.values()))

    def on_lost(self, link: Link) -> None:
        """Start to re-establish a lost link, if `link_clusters` of this end made it."""
        wanted = link.dialed_addresses and not link.peer.is_self and self._context.auto_relink
        if not wanted or self._closed or link.cluster_id in self._context.index.links:
            return
        relink = Relink(link)
        self._pending[link.cluster_id] = relink
        relink.task = self._context.control.spawn(self._run(relink))

    def on_linked(self, link: Link) -> None:
        """Stop re-establishing the lost link that this link is, or replaces."""
        relink = None if link.is_mirror else self._pending.pop(link.cluster_id, None)
        if relink is None:
            return
        setup = self._context.index.dials.get(link.incarnation)
        own = setup is not None and setup.relink is relink
        if own:
            self._num_reconnects[link.cluster_id] += 1
            logger.info(
                "link to cluster %d at %s is re-established after %.1f s and %d dials",
                link.cluster_id,
                printed(link.address),
                time.monotonic() - relink.since,
                relink.attempts,
            )
        elif relink.task is not None:
            relink.task.cancel()
        if own or not link.peer.dialed or CLUSTERS not in link.holders:
            # No call at this end made this link, but one made the lost link.
            link.holders |= {CLUSTERS}
            link.addresses |= relink.lost.addresses
            link.dialed_addresses |= relink.lost.dialed_addresses

    async def cancel(self, lost: Iterable[Link]) -> None:
        """Stop re-establishing these links; no dial for them runs when this returns."""
        await self._cancel([r for link in lost if (r := self._pending_for(link)) is not None])

    async def cancel_all(self) -> None:
        """Stop re-establishing all links that are lost now."""
        await self._cancel(list(self._pending.values()))

    async def cancel_replaced(self, link: Link) -> None:
        """Stop re-establishing links whose address the peer of this link has now."""
        addresses, pending = link.dialed_addresses.keys(), self._pending.values()
        await self._cancel([r for r in pending if r.lost.dialed_addresses.keys() & addresses])

    def close(self) -> None:
        """Stop for good; the loop cancels the dials that run."""
        self._closed = True
        self._pending.clear()

    def describe(self) -> list[dict[str, object]]:
        """Return the facts that `describe_relinks` shows. Any thread."""
        return [_facts(relink) for relink in list(self._pending.values())]

    def _pending_for(self, link: Link) -> Relink | None:
        relink = self._pending.get(link.cluster_id)
        return relink if relink is not None and relink.lost is link else None

    async def _cancel(self, relinks: list[Relink]) -> None:
        tasks = [relink.task for relink in relinks if relink.task is not None]
        for relink in relinks:
            self._forget(relink)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _forget(self, relink: Relink) -> None:
        if self._is_pending(relink):
            del self._pending[relink.lost.cluster_id]

    def _is_pending(self, relink: Relink) -> bool:
        return self._pending.get(relink.lost.cluster_id) is relink

    async def _run(self, relink: Relink) -> None:
        backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        await self._sleep(backoff.next())
        logger.info(
            "link to cluster %d at %s is being re-established",
            relink.lost.cluster_id,
            printed(relink.lost.address),
        )
        while self._is_pending(relink):
            answered = await self._dial(relink)
            backoff.longest = _LONGEST_REFUSED_PAUSE if answered else _LONGEST_PAUSE
            await self._sleep(backoff.next())

    async def _sleep(self, pause: float) -> None:
        pause = max(pause, len(self._pending) / _DIALS_PER_SECOND)
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    async def _dial(self, relink: Relink) -> bool:
        """Dial the peer once at each of its addresses; return whether an instance refused."""
        lost, refused = relink.lost, False
        for address, source_ip in list(lost.dialed_addresses.items()):
            relink.attempts += 1
            outcome = await dial(
                self._context,
                self._lifecycle,
                DialRequest(
                    address=address,
                    deadline=Deadline(_DIAL_SECONDS),
                    expected_cluster_id=lost.cluster_id,
                    source_ip=source_ip,
                    relink=relink,
                    connect_seconds=_CONNECT_SECONDS,
                ),
            )
            if not self._is_pending(relink):
                break
            refused |= outcome.answered
            relink.failure = outcome.result.reason
            if outcome.result.status is LLMStatusCode.LLM_NOT_YET_LINK:
                logger.info("link is not re-established: %s", relink.failure)
                self._forget(relink)
                break
        return refused


def _facts(relink: Relink) -> dict[str, object]:
    lost = relink.lost
    return {
        "cluster_id": lost.cluster_id,
        "peer": printed(lost.address),
        "incarnation": f"{lost.incarnation:016x}",
        "places": [printed(address) for address in list(lost.dialed_addresses)],
        "lost": lost.reason,
        "seconds": time.monotonic() - relink.since,
        "attempts": relink.attempts,
        "failure": relink.failure,
    }
