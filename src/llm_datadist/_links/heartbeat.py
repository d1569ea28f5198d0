"""Peers that are frozen or cut off are noticed while nothing is asked of them. Loop thread only.

One task looks at every link once a period. Links on which nothing has come since the last look are
pinged together, on one lane each: native threads answer there, so that an interpreter that is busy
at either end neither makes a peer dead nor takes part at all, and thousands of links cost next to
nothing. A peer that does not answer there gets a Ping on the control connection as well, for lanes
may be broken, and no more on the lanes until half of its time is over, since each that is not
answered costs a lane. A peer that does not answer anywhere until the time is over loses its link.

Time counts as silence only while this end was awake to hear: a process that was frozen itself does
not find all its peers dead.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_datadist._links.context import LinkContext
    from llm_datadist._links.lifecycle import Upkeep
    from llm_datadist._links.link import Link

__all__ = ["Heartbeat"]

logger = logging.getLogger("llm_datadist")

#: Links that are looked at without a pause; the rest of the loop's work comes in between.
_AT_ONCE: Final = 64
#: Very many links are looked at less often: about so many a second, but each of them several times
#: before its peer's time is over.
_LINKS_PER_SECOND: Final = 400
_LOOKS_PER_TIMEOUT: Final = 4
_ASK_SECONDS: Final = 1.0
#: Calls under way, each of which keeps a worker; those beyond wait, which counts as no answer.
_CALLS: Final = 8


@final
class Heartbeat:
    """Looks after all links of one instance."""

    def __init__(self, context: LinkContext, upkeep: Upkeep) -> None:
        self._context = context
        self._upkeep = upkeep
        self._limit = context.peer_timeout_seconds
        self._calls = asyncio.Semaphore(_CALLS)

    async def run(self) -> None:
        """Look at the links, for ever."""
        while True:
            links = [link for link in self._context.ledger.links.values() if not link.peer.is_self]
            period = self._period(len(links))
            pieces = [links[at : at + _AT_ONCE] for at in range(0, len(links), _AT_ONCE)] or [[]]
            for piece in pieces:
                silent = [link for link in piece if self._look(link, period)]
                if silent:
                    self._context.control.spawn(self._ask(silent))
                await asyncio.sleep(period / len(pieces))

    def _period(self, num_links: int) -> float:
        busy = min(num_links / _LINKS_PER_SECOND, self._limit / _LOOKS_PER_TIMEOUT)
        return max(self._context.heartbeat_seconds, busy)

    def _look(self, link: Link, period: float) -> bool:
        """Look after a link; return whether its lanes are to be asked."""
        if link.lost.is_set():
            return False
        delegate, pulse, now = self._context.delegate, link.pulse, time.monotonic()
        elapsed, pulse.looked = min(now - pulse.looked, 2 * period), now
        if max(delegate.missing_lanes(link.data)) > 0:
            self._upkeep.healing.heal(link)
        heard = (link.conversation.heard, delegate.traffic(link.data))
        if heard != pulse.heard:
            pulse.heard = heard
            _alive(link)
            return False
        pulse.silence += elapsed
        if pulse.silence >= self._limit and pulse.beaten:
            self._upkeep.lose(
                link,
                f"the peer was silent for {pulse.silence:.1f} s, neither its lanes nor its control "
                "plane answered; it is frozen or cut off",
            )
            return False
        return not pulse.asking and pulse.silence >= pulse.asked

    async def _ask(self, links: Sequence[Link]) -> None:
        """Ask the peers' native threads; an answer ends the silence."""
        seconds = min(_ASK_SECONDS, self._limit / 4)
        for link in links:
            link.pulse.asking = True
        answers = [False] * len(links)
        try:
            async with self._calls:
                deadline_ns = time.monotonic_ns() + int(seconds * 1e9)
                answers = await self._context.workers.run(
                    self._context.delegate.ping_all, [link.data for link in links], deadline_ns
                )
        finally:
            for link, answered in zip(links, answers, strict=True):
                link.pulse.asking = False
                if answered:
                    _alive(link)
                else:
                    self._unanswered(link)

    def _unanswered(self, link: Link) -> None:
        pulse = link.pulse
        pulse.asked = self._limit / 2
        if not pulse.beaten:
            pulse.beaten = True
            link.conversation.beat()


def _alive(link: Link) -> None:
    link.pulse.silence = link.pulse.asked = 0.0
    link.pulse.beaten = False
