"""Replace lost lanes of links that are up, and open those that come to be needed. Loop thread only.

An operation that ends badly costs its lane, and lanes also break by themselves. The end that dialed
the link opens replacements in the background. They use the lane handshake and the terms of the link
set-up, so nothing is negotiated again. The dialing end detects its own missing lanes; the accepting
end requests those that it is missing with a Reopen message, and takes lanes only while it needs
them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING, Final, final

from llm_datadist._control.backoff import Backoff
from llm_datadist._control.connection import PeerClosedError
from llm_datadist._control.deadline import Deadline
from llm_datadist._control.events import LoopEvent
from llm_datadist._control.sockets import printed
from llm_datadist._links.lane_setup import open_lanes
from llm_datadist._protocol.codec import ProtocolError
from llm_datadist._protocol.handshake import Side
from llm_datadist._protocol.messages import Reopen

if TYPE_CHECKING:
    from llm_datadist._links.context import LinkContext
    from llm_datadist._links.lane_terms import AuthenticatedLane, LanePlace, LaneRoute, OpenLanes
    from llm_datadist._links.link import Link

__all__ = ["LaneRepair"]

logger = logging.getLogger("llm_datadist")

_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 1.0
#: A link that loses lanes again sooner than this after a repair is repaired after a pause.
_STABLE_SECONDS: Final = 1.0
_LONGEST_DELAY: Final = 0.1
#: Lost SYNs are retransmitted too late, so it is better to connect again.
_CONNECT_SECONDS: Final = 1.0
#: A frozen peer's kernel accepts connections; a pending lane is answered as soon as the peer thaws.
_ANSWER_SECONDS: Final = 4.0
_REQUEST_PAUSE: Final = 0.2
#: Lanes that the peer has given up may look open at this end until the kernel reports their end.
_MAX_SERVED_FACTOR: Final = 4


@final
class _LinkRepair:
    """State of the repair of one link; at most one task runs for it at a time.

    Attributes:
        num_requested: Lanes that the accepting end has requested.
        lane_arrived: Set when the accepting end has taken a lane.
        repaired_at: When the last repair ended, on the clock of `time.monotonic`.
        backoff: Delays before the repairs of a link that loses its lanes again at once.
    """

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.num_requested = 0
        self.lane_arrived = LoopEvent()
        self.repaired_at = 0.0
        self.backoff = Backoff(_FIRST_PAUSE, _LONGEST_DELAY)


@final
class LaneRepair:
    """Opens the lanes that links are missing."""

    def __init__(self, context: LinkContext) -> None:
        self._context = context
        self._repairs: dict[Link, _LinkRepair] = {}

    def add_link(self, link: Link) -> None:
        """Start repairing the lanes of this link."""
        self._repairs[link] = _LinkRepair()
        if link.terms.route is None:
            self._context.sessions[link.terms.session] = _EstablishedSession(self, link)

    def remove_link(self, link: Link) -> None:
        """Stop repairing the lanes of this link."""
        repair = self._repairs.pop(link, None)
        if repair is not None and repair.task is not None:
            repair.task.cancel()
        session = link.terms.session
        if link.terms.route is None and session in self._context.sessions:
            del self._context.sessions[session]
            self._context.ended_sessions.append(session)

    def start(self, link: Link) -> None:
        """Start the repair task of a link that is up, unless one is running."""
        repair = self._repairs.get(link)
        if repair is None or (repair.task is not None and not repair.task.done()):
            return
        route = link.terms.route
        if route is None:
            work = self._request_lanes(link, repair)
        else:
            work = self._open_lanes(link, repair, route)
        repair.task = self._context.control.spawn(work)

    def start_by_id(self, link_id: int) -> None:
        """Call `start` for the link with this id, if it is up."""
        link = self._context.index.ends.get(link_id)
        if link is not None:
            self.start(link)

    def on_reopen(self, link: Link, num_lanes: int) -> None:
        """Handle a Reopen: the accepting end requests lanes.

        Raises:
            ProtocolError: This is the accepting end, or the peer requests more lanes than the link
                may have.
        """
        if link.terms.route is None or num_lanes > link.terms.most_lanes:
            raise ProtocolError(f"Reopen of {num_lanes} lanes")
        repair = self._repairs.get(link)
        if repair is not None:
            repair.num_requested = num_lanes
            self.start(link)

    def add_lane(self, link: Link, place: LanePlace, lane: AuthenticatedLane) -> None:
        """Add an authenticated lane to a link, on the accepting end.

        Raises:
            PeerClosedError: The link does not need it.
        """
        delegate, repair = self._context.delegate, self._repairs.get(link)
        if repair is None:
            raise PeerClosedError("lane of a link that has ended")
        num_client, num_server = delegate.missing_lanes(link.data)
        if place[0] is Side.DIALER:
            if num_client <= 0:
                raise PeerClosedError("no lane is missing on which this end asks")
            delegate.add_lanes(link.data, [lane.detach()], [])
        else:
            if num_server <= (1 - _MAX_SERVED_FACTOR) * link.terms.most_lanes:
                raise PeerClosedError("too many lanes that this end serves")
            delegate.add_lanes(link.data, [], [lane.detach()])
        repair.lane_arrived.set()

    def _missing_places(self, link: Link, repair: _LinkRepair) -> list[LanePlace]:
        """Return the lanes that the dialing end must open."""
        num_client, num_server = self._context.delegate.missing_lanes(link.data)
        return [(Side.ACCEPTOR, index) for index in range(num_client)] + [
            (Side.DIALER, index) for index in range(max(num_server, repair.num_requested))
        ]

    def _num_missing_clients(self, link: Link) -> int:
        """Return how many lanes are missing on which this end sends requests."""
        return self._context.delegate.missing_lanes(link.data)[0]

    async def _open_lanes(self, link: Link, repair: _LinkRepair, route: LaneRoute) -> None:
        """Open the missing lanes, on the dialing end, until none is missing."""
        if time.monotonic() - repair.repaired_at < _STABLE_SECONDS:
            await asyncio.sleep(repair.backoff.next())
        else:
            repair.backoff.reset()
        backoff, num_failures = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE), 0
        while link.alive and (places := self._missing_places(link, repair)):
            if num_failures:
                places = places[:1]  # one lane is enough to probe the peer
            deadline, started = Deadline(_ANSWER_SECONDS), time.monotonic()
            try:
                lanes = await deadline.limit(
                    open_lanes(route, link.terms, places, _CONNECT_SECONDS)
                )
            except (OSError, EOFError, ProtocolError, asyncio.TimeoutError) as error:
                num_failures += 1
                _log_failure(link, error, num_failures)
                await asyncio.sleep(started + backoff.next() - time.monotonic())
                continue
            num_failures = 0
            self._add_opened(link, repair, lanes)
        repair.repaired_at = time.monotonic()

    def _add_opened(self, link: Link, repair: _LinkRepair, lanes: OpenLanes) -> None:
        if not link.alive:
            for lane in (*lanes[0], *lanes[1]):
                os.close(lane.fd)
            return
        self._context.delegate.add_lanes(link.data, *lanes)
        repair.num_requested = max(0, repair.num_requested - len(lanes[1]))
        logger.info(
            "opened %d more lanes to cluster %d at %s",
            len(lanes[0]) + len(lanes[1]),
            link.cluster_id,
            printed(link.address),
        )

    async def _request_lanes(self, link: Link, repair: _LinkRepair) -> None:
        """Request lanes of the dialing end repeatedly, until none is missing.

        The next Reopen is sent only after the peer has answered a Ping that followed the last one:
        a silent peer finds the pending Reopen when it wakes up.
        """
        backoff = Backoff(_REQUEST_PAUSE, _LONGEST_PAUSE)
        with contextlib.suppress(PeerClosedError):
            while link.alive and (num_missing := self._num_missing_clients(link)) > 0:
                link.conversation.connection.send(Reopen(num_lanes=num_missing))
                await link.conversation.ping()
                await self._wait_for_lanes(link, repair, Deadline(backoff.next()))

    async def _wait_for_lanes(self, link: Link, repair: _LinkRepair, deadline: Deadline) -> None:
        """Wait until no lane is missing, or until the deadline."""
        with contextlib.suppress(asyncio.TimeoutError):
            while self._num_missing_clients(link) > 0:
                repair.lane_arrived.clear()
                await deadline.limit(repair.lane_arrived.wait())


@final
class _EstablishedSession:
    """The lane session of a link that is up; see LaneSink."""

    def __init__(self, lane_repair: LaneRepair, link: Link) -> None:
        self.key = link.terms.key
        self.relays = link.terms.relays
        self._lane_repair = lane_repair
        self._link = link

    def add(self, place: LanePlace, lane: AuthenticatedLane) -> None:
        """Add an authenticated lane; PeerClosedError when the link does not need it."""
        self._lane_repair.add_lane(self._link, place, lane)


def _log_failure(link: Link, error: Exception, num_failures: int) -> None:
    level = logging.INFO if num_failures == 1 else logging.DEBUG
    logger.log(
        level,
        "no new lanes to cluster %d at %s yet: %s",
        link.cluster_id,
        printed(link.address),
        str(error) or "no answer",
    )
