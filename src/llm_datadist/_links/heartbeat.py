"""Peers that are frozen or cut off are noticed while nothing is asked of them. Loop thread only.

One task looks at every link once a period. A link on which nothing has come since the last look
gets a Ping, one until something comes: either end's Ping and its answer count for both. When half
of the time that a peer has is over, its lanes are asked as well, which native threads answer: an
interpreter that is busy does not make a peer dead. A peer that does not answer there either, until
the time is over, loses its link.

Time counts as silence only while this end was awake to hear: a process that was frozen itself does
not find all its peers dead.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from llm_datadist._links.context import LinkContext
    from llm_datadist._links.link import Link
    from llm_datadist._links.upkeep import Upkeep

__all__ = ["Heartbeat"]

logger = logging.getLogger("llm_datadist")

#: Links that are looked at without a pause; the rest of the loop's work comes in between.
_AT_ONCE: Final = 16
#: Very many links are looked at less often, so that they cost no measurable time: at most so many
#: a second, but each of them several times before its peer's time is over.
_LINKS_PER_SECOND: Final = 400
_LOOKS_PER_TIMEOUT: Final = 4
_ASK_SECONDS: Final = 1.0
_ASKED_AT_ONCE: Final = 16


@final
class Heartbeat:
    """Looks after all links of one instance."""

    def __init__(self, context: LinkContext, upkeep: Upkeep) -> None:
        self._context = context
        self._upkeep = upkeep
        self._limit = context.peer_timeout_seconds
        self._asks = asyncio.Semaphore(_ASKED_AT_ONCE)

    async def run(self) -> None:
        """Look at the links, for ever."""
        while True:
            links = [link for link in self._context.ledger.links.values() if not link.peer.is_self]
            period = self._period(len(links))
            pieces = [links[at : at + _AT_ONCE] for at in range(0, len(links), _AT_ONCE)] or [[]]
            for piece in pieces:
                for link in piece:
                    try:
                        self._look(link, period)
                    except Exception:
                        logger.exception("looking after link %d", link.link_id)
                await asyncio.sleep(period / len(pieces))

    def _period(self, num_links: int) -> float:
        busy = min(num_links / _LINKS_PER_SECOND, self._limit / _LOOKS_PER_TIMEOUT)
        return max(self._context.heartbeat_seconds, busy)

    def _look(self, link: Link, period: float) -> None:
        if link.lost.is_set():
            return
        pulse, heard, now = link.pulse, link.conversation.heard, time.monotonic()
        elapsed, pulse.looked = min(now - pulse.looked, 2 * period), now
        if heard != pulse.heard:
            pulse.heard = heard
            pulse.silence = 0.0
            pulse.beaten = False
        else:
            pulse.silence += elapsed
            self._silent(link)
        if not link.lost.is_set() and max(self._context.delegate.missing_lanes(link.data)) > 0:
            self._upkeep.healing.heal(link)

    def _silent(self, link: Link) -> None:
        pulse = link.pulse
        if not pulse.beaten:
            pulse.beaten = True
            link.conversation.beat()
        elif pulse.silence >= self._limit:
            self._upkeep.lose(
                link,
                f"the peer was silent for {pulse.silence:.1f} s, neither its control plane nor "
                "its lanes answered; it is frozen or cut off",
            )
        elif pulse.silence >= self._limit / 2 and not pulse.asking:
            pulse.asking = True
            self._context.control.spawn(self._ask(link))

    async def _ask(self, link: Link) -> None:
        """Ask the peer's native threads; their answer ends the silence."""
        context, pulse = self._context, link.pulse
        seconds = min(_ASK_SECONDS, self._limit / 4)
        try:
            async with self._asks:
                if not link.alive:
                    return
                deadline_ns = time.monotonic_ns() + int(seconds * 1e9)
                if await context.workers.run(context.delegate.answers, link.data, deadline_ns):
                    pulse.silence = 0.0
        finally:
            pulse.asking = False
