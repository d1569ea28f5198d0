"""Lost lanes of links that are up are opened anew. Loop thread only.

An operation that ends badly costs its lane, and lanes break by themselves. The end that dialed the
link opens new ones in the background, over the handshake of lanes and by the terms of the set-up,
so that nothing has to be agreed again. It sees by itself what is missing on which it asks, and what
it serves no longer; the accepting end tells it with Reopen what is missing on its side.

What arrives on the accepting end is taken while the link needs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING, Final, final

from llm_datadist._control.connection import PeerClosedError
from llm_datadist._control.deadline import Deadline
from llm_datadist._control.sockets import printed
from llm_datadist._links.lane_setup import open_lanes
from llm_datadist._protocol.codec import ProtocolError
from llm_datadist._protocol.handshake import Side
from llm_datadist._protocol.messages import Reopen

if TYPE_CHECKING:
    from llm_datadist._links.context import LinkContext
    from llm_datadist._links.lane_terms import LanePlace, LaneRoute, OpenLanes, ProvenLane
    from llm_datadist._links.link import Link

__all__ = ["Healing"]

logger = logging.getLogger("llm_datadist")

_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 1.0
#: A link whose lanes are lost as fast as they are opened gets them this far apart.
_WELL_AGAIN: Final = 1.0
_LONGEST_REST: Final = 0.1
#: SYNs that are lost come again too late, so it is better to connect anew.
_CONNECT_SECONDS: Final = 1.0
#: A frozen peer's kernel accepts; what waits for the answer gets it at once when the peer thaws.
_ANSWER_SECONDS: Final = 4.0
_ANSWER_PAUSE: Final = 0.2
#: Lanes that the peer has given up may seem open here until the kernel knows better.
_MOST_SERVED: Final = 4


@final
class _Patient:
    """One link's state: at most one task heals it at a time."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.asked = 0  # lanes that the peer has asked for
        self.came = asyncio.Event()  # the accepting end has taken a lane
        self.well_since = 0.0
        self.rest = 0.0


@final
class Healing:
    """Keeps up the number of lanes of every link."""

    def __init__(self, context: LinkContext) -> None:
        self._context = context
        self._patients: dict[Link, _Patient] = {}

    def admit(self, link: Link) -> None:
        """Care for a link from now on."""
        self._patients[link] = _Patient()
        if link.terms.route is None:
            self._context.sessions[link.terms.session] = _Standing(self, link)

    def end(self, link: Link) -> None:
        """Care for a link no more."""
        patient = self._patients.pop(link, None)
        if patient is not None and patient.task is not None:
            patient.task.cancel()
        session = link.terms.session
        if link.terms.route is None and session in self._context.sessions:
            del self._context.sessions[session]
            self._context.ended_sessions.append(session)

    def begin(self, link_id: int) -> None:
        """Open what is missing of a link, if it is up; nothing happens while that is under way."""
        link = self._context.ledger.ends.get(link_id)
        if link is not None:
            self.heal(link)

    def heal(self, link: Link) -> None:
        """As `begin`."""
        patient = self._patients.get(link)
        if patient is None or (patient.task is not None and not patient.task.done()):
            return
        route = link.terms.route
        work = self._ask(link, patient) if route is None else self._dial(link, patient, route)
        patient.task = self._context.control.spawn(work)

    def asked(self, link: Link, num_lanes: int) -> None:
        """The accepting end asks for lanes.

        Raises:
            ProtocolError: This is the accepting end, or it asks for more than the link had.
        """
        if link.terms.route is None or num_lanes > link.terms.num_lanes:
            raise ProtocolError(f"Reopen of {num_lanes} lanes")
        patient = self._patients.get(link)
        if patient is not None:
            patient.asked = num_lanes
            self.heal(link)

    def take(self, link: Link, place: LanePlace, lane: ProvenLane) -> None:
        """Take a proven lane on the accepting end.

        Raises:
            PeerClosedError: The link does not need it.
        """
        delegate, patient = self._context.delegate, self._patients.get(link)
        if patient is None:
            raise PeerClosedError("lane of a link that has ended")
        asking, serving = delegate.missing_lanes(link.data)
        if place[0] is Side.DIALER:
            if asking <= 0:
                raise PeerClosedError("no lane is missing on which this end asks")
            delegate.add_lanes(link.data, [lane.detach()], [])
        else:
            if serving <= (1 - _MOST_SERVED) * link.terms.num_lanes:
                raise PeerClosedError("too many lanes that this end serves")
            delegate.add_lanes(link.data, [], [lane.detach()])
        patient.came.set()

    def _missing(self, link: Link, patient: _Patient) -> list[LanePlace]:
        """Return the lanes to open, on the dialing end."""
        asking, serving = self._context.delegate.missing_lanes(link.data)
        return [(Side.ACCEPTOR, index) for index in range(asking)] + [
            (Side.DIALER, index) for index in range(max(serving, patient.asked))
        ]

    def _asking(self, link: Link) -> int:
        """Return how many lanes are missing on which this end asks."""
        return self._context.delegate.missing_lanes(link.data)[0]

    async def _dial(self, link: Link, patient: _Patient, route: LaneRoute) -> None:
        await self._rest(patient)
        pause, failures = _FIRST_PAUSE, 0
        while link.alive and (places := self._missing(link, patient)):
            if failures:
                places = places[:1]  # enough to try
            deadline = Deadline(_ANSWER_SECONDS)
            next_attempt = Deadline(pause)
            try:
                lanes = await deadline.limit(
                    open_lanes(route, link.terms, places, _CONNECT_SECONDS)
                )
            except (OSError, EOFError, ProtocolError, asyncio.TimeoutError) as error:
                failures += 1
                _log_failure(link, error, failures)
                await asyncio.sleep(next_attempt.remaining())
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            failures = 0
            self._add(link, patient, lanes)
        patient.well_since = time.monotonic()

    async def _rest(self, patient: _Patient) -> None:
        """Wait a little when the link lost its lanes just after it had got new ones."""
        if time.monotonic() - patient.well_since < _WELL_AGAIN:
            patient.rest = min(max(2 * patient.rest, _FIRST_PAUSE), _LONGEST_REST)
            await asyncio.sleep(patient.rest)
        else:
            patient.rest = 0.0

    def _add(self, link: Link, patient: _Patient, lanes: OpenLanes) -> None:
        if not link.alive:
            for lane in (*lanes[0], *lanes[1]):
                os.close(lane.fd)
            return
        self._context.delegate.add_lanes(link.data, *lanes)
        patient.asked = max(0, patient.asked - len(lanes[1]))
        logger.info(
            "opened %d lanes anew to cluster %d at %s",
            len(lanes[0]) + len(lanes[1]),
            link.cluster_id,
            printed(link.address),
        )

    async def _ask(self, link: Link, patient: _Patient) -> None:
        """Ask the dialing end, again and again, until the lanes are there.

        Not before it has answered a Ping that was sent after the last time: what a silent peer was
        sent once, it finds when it wakes up.
        """
        pause = _ANSWER_PAUSE
        with contextlib.suppress(PeerClosedError):
            while link.alive and (asking := self._asking(link)) > 0:
                link.conversation.connection.send(Reopen(num_lanes=asking))
                await link.conversation.ping()
                await self._come(link, patient, Deadline(pause))
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def _come(self, link: Link, patient: _Patient, deadline: Deadline) -> None:
        """Wait until no lane is missing, or for the deadline."""
        with contextlib.suppress(asyncio.TimeoutError):
            while self._asking(link) > 0:
                patient.came.clear()
                await deadline.limit(patient.came.wait())


@final
class _Standing:
    """Takes lanes of a link that is up."""

    def __init__(self, healing: Healing, link: Link) -> None:
        self.key = link.terms.key
        self.relays = link.terms.relays
        self._healing = healing
        self._link = link

    def fill(self, place: LanePlace, lane: ProvenLane) -> None:
        """Take a proven lane; PeerClosedError when the link does not need it."""
        self._healing.take(self._link, place, lane)


def _log_failure(link: Link, error: Exception, failures: int) -> None:
    level = logging.INFO if failures == 1 else logging.DEBUG
    logger.log(
        level,
        "no new lanes to cluster %d at %s yet: %s",
        link.cluster_id,
        printed(link.address),
        str(error) or "no answer",
    )
