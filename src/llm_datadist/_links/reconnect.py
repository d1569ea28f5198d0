"""Lost links that `link_clusters` of this end had made are made again. Loop thread only.

Where a link was lost, in whatever way, its peer is dialed in the background at the places where
`link_clusters` had found it, until it answers under its old cluster id: the same instance after a
cut, or a new one in its place. Another cluster id there is left alone. The dialing ends without a
link when `unlink_clusters` is called for it at either end, when the instance changes its role or is
finalized, and when a link with that cluster id comes about otherwise. It stands back for calls.

An unlink at the peer that could not be told, because the two were cut off from each other, is told
when the peer is dialed: the hello names the lost link.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Final, final

from llm_datadist._control.deadline import Deadline
from llm_datadist._control.sockets import printed
from llm_datadist._errors import LLMStatusCode
from llm_datadist._links.context import CLUSTERS
from llm_datadist._links.dialer import DialRequest, dial
from llm_datadist._links.state import Relink

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_datadist._links.context import LinkContext
    from llm_datadist._links.lifecycle import Upkeep
    from llm_datadist._links.link import Link

__all__ = ["Relinks"]

logger = logging.getLogger("llm_datadist")

_FIRST_PAUSE: Final = 0.05
#: Between dials of a peer that cannot be reached, and of one that is there and refuses.
_LONGEST_PAUSE: Final = 5.0
_LONGEST_REFUSED_PAUSE: Final = 30.0
#: Where very many links are lost at once they take turns.
_DIALS_PER_SECOND: Final = 100
#: SYNs that are lost come again too late, so it is better to connect anew.
_CONNECT_SECONDS: Final = 2.0
#: A frozen peer's kernel accepts; what waits for the answer gets it at once when the peer thaws.
_DIAL_SECONDS: Final = 10.0


@final
class Relinks:
    """Makes the lost links of one instance again."""

    def __init__(self, context: LinkContext, upkeep: Upkeep) -> None:
        self._context = context
        self._pending = context.ledger.relinks
        self._upkeep = upkeep
        self._made: Counter[int] = Counter()
        self._closed = False

    def made(self, cluster_id: int) -> int:
        """Return how many links to that id were made again. Any thread."""
        return self._made[cluster_id]

    def begin(self, link: Link) -> None:
        """A link was lost: have it made again, if `link_clusters` of this end had made it."""
        wanted = link.places and not link.peer.is_self and self._context.auto_relink
        if not wanted or self._closed or link.cluster_id in self._context.ledger.links:
            return
        relink = Relink(link)
        self._pending[link.cluster_id] = relink
        relink.task = self._context.control.spawn(self._run(relink))

    def linked(self, link: Link) -> None:
        """A link is up: what was lost is there again, or has been replaced."""
        relink = None if link.is_mirror else self._pending.pop(link.cluster_id, None)
        if relink is None:
            return
        setup = self._context.ledger.dials.get(link.incarnation)
        own = setup is not None and setup.caller is relink
        if own:
            self._made[link.cluster_id] += 1
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
            # Nobody asked for this one here, but for the lost one somebody did.
            link.holders |= {CLUSTERS}
            link.addresses |= relink.lost.addresses
            link.places |= relink.lost.places

    async def cancel(self, lost: Iterable[Link]) -> None:
        """Do not make these links again; when it returns no dial is under way any more."""
        await self._cancel([r for link in lost if (r := self._pending_for(link)) is not None])

    async def cancel_all(self) -> None:
        """Make none again of those that are lost now."""
        await self._cancel(list(self._pending.values()))

    async def replaced(self, link: Link) -> None:
        """A call has found this link's peer: who was lost at the same place is not there now."""
        others = [r for r in self._pending.values() if r.lost.places.keys() & link.places.keys()]
        await self._cancel(others)

    def close(self) -> None:
        """Make no link again any more; the loop ends what is under way."""
        self._closed = True
        self._pending.clear()

    def describe(self) -> list[dict[str, object]]:
        """Return the facts of what is pending. Any thread."""
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
        pause = _FIRST_PAUSE
        await self._rest(pause)
        logger.info(
            "link to cluster %d at %s is being re-established",
            relink.lost.cluster_id,
            printed(relink.lost.address),
        )
        while self._is_pending(relink):
            answered = await self._dial(relink)
            longest = _LONGEST_REFUSED_PAUSE if answered else _LONGEST_PAUSE
            pause = min(2 * pause, longest)
            await self._rest(pause)

    async def _rest(self, pause: float) -> None:
        pause = max(pause, len(self._pending) / _DIALS_PER_SECOND)
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    async def _dial(self, relink: Relink) -> bool:
        """Dial the peer once at each of its places; return whether somebody there refused."""
        lost, refused = relink.lost, False
        for address, source_ip in list(lost.places.items()):
            relink.attempts += 1
            outcome = await dial(
                self._context,
                self._upkeep,
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
                logger.info("link is not made again: %s", relink.failure)
                self._forget(relink)
                break
        return refused


def _facts(relink: Relink) -> dict[str, object]:
    lost = relink.lost
    return {
        "cluster_id": lost.cluster_id,
        "peer": printed(lost.address),
        "incarnation": f"{lost.incarnation:016x}",
        "places": [printed(place) for place in list(lost.places)],
        "lost": lost.reason,
        "seconds": time.monotonic() - relink.since,
        "attempts": relink.attempts,
        "failure": relink.failure,
    }
