"""Detect peers that are frozen or cut off while nothing is sent to them. Loop thread only.

One task checks every link once per period. Links on which nothing has arrived since the last check
are pinged together, on one lane each. Native threads answer these pings, so that a busy interpreter
at either end does not make a peer look dead, and thousands of links cost next to nothing. A peer
that does not answer on a lane is also sent a Ping on the control connection, since its lanes may be
broken. Its lanes are pinged again only after half of the timeout, because each unanswered ping
costs a lane. A peer that answers nowhere until the timeout loses its link.

Only time in which this process ran counts as silence: a process that was frozen itself does not
take all its peers for dead.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_datadist._links.context import LinkContext
    from llm_datadist._links.link import Link

__all__ = ["Heartbeat"]

#: Links that are checked without a pause, which takes about a millisecond; the loop does its other
#: work in between. Each step wakes threads, which costs as much as the checks of 64 links.
_LINKS_PER_STEP: Final = 256
#: Very many links are checked less often: about this many a second, but each of them several times
#: within its timeout.
_LINKS_PER_SECOND: Final = 400
_CHECKS_PER_TIMEOUT: Final = 4
_PING_SECONDS: Final = 1.0
#: Pending pings, each of which occupies a worker. Further ones wait, which counts as no answer.
_MAX_PINGS: Final = 8


@final
class Heartbeat:
    """Checks all links of one instance.

    Args:
        context: The instance.
        repair_lanes: Called with a link that has lost lanes.
        lose: Called with the link of a silent peer, and the reason.
    """

    def __init__(
        self,
        context: LinkContext,
        repair_lanes: Callable[[Link], None],
        lose: Callable[[Link, str], None],
    ) -> None:
        self._context = context
        self._repair_lanes = repair_lanes
        self._lose = lose
        self._timeout = context.peer_timeout_seconds
        self._pings = asyncio.Semaphore(_MAX_PINGS)

    async def run(self) -> None:
        """Check the links until the task is canceled."""
        while True:
            links = [link for link in self._context.index.links.values() if not link.peer.is_self]
            period = self._period(len(links))
            step = _LINKS_PER_STEP
            parts = [links[at : at + step] for at in range(0, len(links), step)] or [[]]
            for part in parts:
                silent = [link for link in part if self._check(link, period)]
                if silent:
                    self._context.control.spawn(self._ping(silent))
                await asyncio.sleep(period / len(parts))

    def _period(self, num_links: int) -> float:
        busy = min(num_links / _LINKS_PER_SECOND, self._timeout / _CHECKS_PER_TIMEOUT)
        return max(self._context.heartbeat_seconds, busy)

    def _check(self, link: Link, period: float) -> bool:
        """Check a link; return whether its lanes must be pinged."""
        if link.lost.is_set():
            return False
        delegate, liveness, now = self._context.delegate, link.liveness, time.monotonic()
        elapsed = min(now - liveness.checked_at, 2 * period)
        liveness.checked_at = now
        if max(delegate.missing_lanes(link.data)) > 0:
            self._repair_lanes(link)
        num_received = (link.conversation.num_received, delegate.traffic(link.data))
        if num_received != liveness.num_received:
            liveness.num_received = num_received
            liveness.reset()
            return False
        liveness.silence += elapsed
        if liveness.silence >= self._timeout and liveness.keepalive_sent:
            self._lose(
                link,
                f"the peer was silent for {liveness.silence:.1f} s, neither its lanes nor its "
                "control plane answered; it is frozen or cut off",
            )
            return False
        return not liveness.is_pinging and liveness.silence >= liveness.ping_after

    async def _ping(self, links: Sequence[Link]) -> None:
        """Ping the peers' native threads over lanes; an answer ends the silence."""
        seconds = min(_PING_SECONDS, self._timeout / 4)
        for link in links:
            link.liveness.is_pinging = True
        answers = [False] * len(links)
        try:
            async with self._pings:
                deadline_ns = time.monotonic_ns() + int(seconds * 1e9)
                answers = await self._context.workers.run(
                    self._context.delegate.ping_all, [link.data for link in links], deadline_ns
                )
        finally:
            for link, answered in zip(links, answers, strict=True):
                link.liveness.is_pinging = False
                if answered:
                    link.liveness.reset()
                else:
                    self._unanswered(link)

    def _unanswered(self, link: Link) -> None:
        liveness = link.liveness
        liveness.ping_after = self._timeout / 2
        if not liveness.keepalive_sent:
            liveness.keepalive_sent = True
            link.conversation.send_keepalive()
