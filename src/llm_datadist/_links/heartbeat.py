"""Detect peers that are frozen or cut off while nothing is sent to them. Loop thread only.

One task looks at every link once per period. Native code says from which peers anything has come
since, an answer or a request, and for thousands of links that is one call and one comparison of
arrays. Only peers that have been silent for a while are pinged, together, on one lane each. The end
that dialed pings first; its pings are signs of life for the other end, which then need not ping.
Native threads answer, so that a busy interpreter at either end does not make a peer look dead.

A peer that does not answer on a lane is also sent a Ping on the control connection, since its lanes
may be broken. Its lanes are pinged again only shortly before the timeout, because each unanswered
ping costs a lane. A peer that answers nowhere until the timeout loses its link.

Only time in which this process ran counts as silence: a process that was frozen itself does not
take all its peers for dead.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Final, final

import numpy as np

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
#: Of so many idle links lost lanes are found a second. A transfer finds those it needs at once.
_PRUNED_PER_SECOND: Final = 100
#: Parts of the timeout: between the pings of an idle peer by the dialing end; after which the other
#: end, which has heard nothing, pings, too; and after which a peer that has not answered is pinged
#: again. Each ping wakes a thread of the peer, which is most of what idle links cost. But a peer
#: that stops right before a ping has only the rest of the timeout to come back.
_DIALER_PINGS: Final = 0.6
_ACCEPTOR_PINGS: Final = 0.7
_LAST_PINGS: Final = 0.8
_PING_SECONDS: Final = 1.0
#: Pending pings, each of which occupies a worker. Further ones wait, which counts as no answer.
_MAX_PINGS: Final = 8


@final
class _Part:
    """Links that are checked together. All arrays have one element for each link.

    Attributes:
        traffic: What `LinkWatch.look` has found at the last check.
        checked_at: Time of the last check.
        prune_at: Time after which lanes that peers have closed are looked for.
        silence: Seconds without anything from the peer, counting only time in which this end ran.
        ping_after: Seconds of silence after which the lanes are pinged.
        is_pinging: Whether a ping on the lanes is pending.
        suspects: Places whose peers have not answered on a lane, and how many messages had come on
            their control connections before they were sent a Ping there.
    """

    def __init__(self, context: LinkContext, links: Sequence[Link]) -> None:
        self.links = links
        self.watch = context.delegate.watch([link.data for link in links])
        self.traffic = np.zeros(len(links), np.uint64)
        self.checked_at = self.prune_at = time.monotonic()
        self.silence = np.zeros(len(links))
        self.ping_after = np.zeros(len(links))
        self.is_pinging = np.zeros(len(links), bool)
        self.suspects: dict[int, int] = {}

    def count_time(self, longest: float) -> None:
        """Count the time since the last check as silence, but no more than `longest` seconds."""
        now = time.monotonic()
        self.silence += min(now - self.checked_at, longest)
        self.checked_at = now

    def take_over(self, place: int, other: _Part, old: int) -> None:
        """Keep what another part, whose time has been counted, knows of a link."""
        for name in ("traffic", "silence", "ping_after", "is_pinging"):
            getattr(self, name)[place] = getattr(other, name)[old]
        self.prune_at = max(self.prune_at, other.prune_at)
        if old in other.suspects:
            self.suspects[place] = other.suspects[old]


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
        self._version = -1
        self._parts: list[_Part] = []
        self._places: dict[Link, tuple[_Part, int]] = {}

    async def run(self) -> None:
        """Check the links until the task is canceled."""
        index = self._context.index
        while True:
            if self._version != index.version:
                self._version = index.version
                self._divide([link for link in index.links.values() if not link.peer.is_self])
            period = self._period(len(self._places))
            for part in self._parts:
                self._check(part, period)
                await asyncio.sleep(period / len(self._parts))
            if not self._parts:
                await asyncio.sleep(period)

    def _period(self, num_links: int) -> float:
        busy = min(num_links / _LINKS_PER_SECOND, self._timeout / _CHECKS_PER_TIMEOUT)
        return max(self._context.heartbeat_seconds, busy)

    def _patience(self, link: Link, period: float) -> float:
        """Return after how much silence a peer is pinged.

        Silence is seen at the checks only: a ping is sent at the first check after so much of it,
        and its answer is found by the check that follows.
        """
        if link.peer.dialed:
            return max(_DIALER_PINGS * self._timeout - 1.5 * period, 0.5 * period)
        return max(_ACCEPTOR_PINGS * self._timeout - 0.5 * period, 0.5 * period)

    def _divide(self, links: Sequence[Link]) -> None:
        """Divide the links into parts again, after some have come or gone."""
        period, known, self._places = self._period(len(links)), self._places, {}
        for part in self._parts:
            part.count_time(2 * period)
        self._parts = []
        for first in range(0, len(links), _LINKS_PER_STEP):
            part = _Part(self._context, links[first : first + _LINKS_PER_STEP])
            self._parts.append(part)
            for place, link in enumerate(part.links):
                self._places[link] = part, place
                part.ping_after[place] = self._patience(link, period)
                if link in known:
                    part.take_over(place, *known[link])

    def _check(self, part: _Part, period: float) -> None:
        """Check links: repair their lanes, ping those that are silent, lose the dead."""
        part.count_time(2 * period)
        prune = part.checked_at >= part.prune_at
        if prune:
            part.prune_at = part.checked_at + len(self._places) / _PRUNED_PER_SECOND
        traffic, incomplete = part.watch.look(prune=prune)
        for place in incomplete:
            if not part.links[place].lost.is_set():
                self._repair_lanes(part.links[place])
        part.silence[traffic != part.traffic] = 0
        part.traffic = traffic
        for place in list(part.suspects):
            self._judge(part, place, period)
        due = np.flatnonzero((part.silence >= part.ping_after) & ~part.is_pinging)
        if len(due):
            part.is_pinging[due] = True
            self._context.control.spawn(self._ping(part, due.tolist()))

    def _judge(self, part: _Part, place: int, period: float) -> None:
        """Decide about a peer that has not answered a ping on a lane."""
        link = part.links[place]
        if link.conversation.num_received != part.suspects[place]:
            part.silence[place] = 0
        silence = float(part.silence[place])
        if silence == 0 or link.lost.is_set():
            del part.suspects[place]
            part.ping_after[place] = self._patience(link, period)
        elif silence >= self._timeout:
            del part.suspects[place]
            part.ping_after[place] = math.inf
            self._lose(
                link,
                f"the peer was silent for {silence:.1f} s, neither its lanes nor its "
                "control plane answered; it is frozen or cut off",
            )

    async def _ping(self, part: _Part, places: Sequence[int]) -> None:
        """Ping the peers' native threads over lanes; an answer ends the silence."""
        links = [part.links[place] for place in places]
        seconds = min(_PING_SECONDS, self._timeout / 4)
        answers = [False] * len(links)
        try:
            async with self._pings:
                deadline_ns = time.monotonic_ns() + int(seconds * 1e9)
                answers = await self._context.workers.run(part.watch.ping, places, deadline_ns)
        finally:
            for link, answered in zip(links, answers, strict=True):
                part, place = self._places.get(link, (part, -1))
                if place >= 0:
                    part.is_pinging[place] = False
                    if not answered:
                        self._unanswered(part, place)

    def _unanswered(self, part: _Part, place: int) -> None:
        part.ping_after[place] = _LAST_PINGS * self._timeout
        link = part.links[place]
        if place not in part.suspects and not link.lost.is_set():
            part.suspects[place] = link.conversation.num_received
            link.conversation.send_keepalive()
