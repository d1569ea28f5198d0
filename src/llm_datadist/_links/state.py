"""Which links there are, which are coming and which are going.

Only the loop thread changes it, and never across an await; `clear` is for when that has ended.
`links`, `dead` and `relinks` may be read from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar, final

from llm_datadist._control.deadline import Deadline

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from llm_datadist._control.sockets import Address
    from llm_datadist._links.link import Link

__all__ = ["Ledger", "Relink", "Setup", "WithdrawnError"]

_T = TypeVar("_T")

_MAX_REMEMBERED: Final = 1024
#: How long a set-up that waits for its dialer keeps another one for the same peer out.
STALL_SECONDS: Final = 2.0


class WithdrawnError(Exception):
    """A set-up gives up because another one goes first."""


@final
class Setup:
    """A link being set up, from the moment at which this end is bound to go through with it.

    Attributes:
        cluster_id: Of the peer.
        incarnation: Of the peer.
        caller: Whose call it belongs to; set-ups of one call wait for each other.
        source: Where the connection comes from; set on the dialing end.
        accepted: Whether the acceptor has accepted it; set on the dialing end.
        withdrawn: Set when another set-up must not wait for this one any longer. It gives up then;
            an incoming one does not where it has all it needs from its dialer.
        over: Set when it has come to its end, whichever.
    """

    def __init__(
        self,
        cluster_id: int,
        incarnation: int,
        caller: object = None,
        source: Address | None = None,
    ) -> None:
        self.cluster_id = cluster_id
        self.incarnation = incarnation
        self.caller = caller
        self.source = source
        self.accepted = False
        self.withdrawn = asyncio.Event()
        self.over = asyncio.Event()
        self._stalls = time.monotonic() + STALL_SECONDS

    @property
    def is_stalled(self) -> bool:
        """Whether it has taken so long that it must not keep others out."""
        return time.monotonic() >= self._stalls

    async def make_way(self) -> None:
        """Wait for its end, and have it withdrawn when that takes too long.

        Without a secret every id and incarnation can be claimed by a stranger, who then stalls.
        """
        with contextlib.suppress(asyncio.TimeoutError):
            await Deadline(max(0.0, self._stalls - time.monotonic())).limit(self.over.wait())
        self.withdrawn.set()
        await self.over.wait()

    async def unless_withdrawn(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Await `work`; WithdrawnError when the set-up is withdrawn first, which cancels it."""
        working = asyncio.ensure_future(work)
        withdrawn = asyncio.ensure_future(self.withdrawn.wait())
        try:
            await asyncio.wait({working, withdrawn}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise WithdrawnError
            return await working
        finally:
            for waiting in (working, withdrawn):
                waiting.cancel()
            await asyncio.gather(working, withdrawn, return_exceptions=True)


@final
class Relink:
    """A lost link that is to be made again in the background.

    Attributes:
        lost: The link that was lost.
        task: What dials; set as soon as it is pending.
        since: When the link was lost, on the clock of `time.monotonic`.
        attempts: Dials so far.
        failure: What the last one came to.
    """

    def __init__(self, lost: Link) -> None:
        self.lost = lost
        self.task: asyncio.Task[None] | None = None
        self.since = time.monotonic()
        self.attempts = 0
        self.failure = "none has come to an end"


@final
class Ledger:
    """The links of one instance.

    Attributes:
        links: Links that are up, by the peer's cluster id.
        ends: Ends of links that are up, mirrors included, by link id.
        leaving: Links being torn down.
        mirrors: The accepting ends of links of this instance with itself.
        dead: By cluster id, the last link when it ended by the peer's death; forgotten when the id
            is linked again or unlinked.
        dials: Set-ups that we began, by the peer's incarnation.
        inbounds: Set-ups that a peer began, by its incarnation.
        relinks: Lost links that are to be made again, by the peer's cluster id.
    """

    def __init__(self) -> None:
        self.links: dict[int, Link] = {}
        self.ends: dict[int, Link] = {}
        self.leaving: set[Link] = set()
        self.mirrors: set[Link] = set()
        self.dead: dict[int, Link] = {}
        self.dials: dict[int, Setup] = {}
        self.inbounds: dict[int, Setup] = {}
        self.relinks: dict[int, Relink] = {}

    def all_links(self) -> list[Link]:
        """Return every end that has data of the delegate."""
        return [*self.links.values(), *self.mirrors, *self.leaving]

    def leaving_from(self, cluster_id: int) -> Link | None:
        """Return a link to that id that is being torn down."""
        return next((link for link in self.leaving if link.cluster_id == cluster_id), None)

    def rival_setup(self, cluster_id: int, incarnation: int) -> Setup | None:
        """Return a set-up with another instance of the same id."""
        setups = (*self.dials.values(), *self.inbounds.values())
        return next(
            (s for s in setups if s.cluster_id == cluster_id and s.incarnation != incarnation), None
        )

    def withdraw_stalled(self) -> bool:
        """Have the oldest incoming set-up give up if it is stalled; return whether it was."""
        waiting = (setup for setup in self.inbounds.values() if not setup.withdrawn.is_set())
        oldest = next(waiting, None)
        if oldest is None or not oldest.is_stalled:
            return False
        oldest.withdrawn.set()
        return True

    def add(self, link: Link) -> None:
        """Take in a link that is up."""
        self.ends[link.link_id] = link
        if link.is_mirror:
            self.mirrors.add(link)
        else:
            self.links[link.cluster_id] = link
            self.dead.pop(link.cluster_id, None)

    def remove(self, link: Link) -> None:
        """Take a link out of use; it is leaving from here on."""
        self.ends.pop(link.link_id, None)
        if self.links.get(link.cluster_id) is link:
            del self.links[link.cluster_id]
        self.mirrors.discard(link)
        self.leaving.add(link)

    def clear(self) -> None:
        """Forget everything; the loop has ended."""
        for links in (self.links, self.ends, self.leaving, self.mirrors, self.dead):
            links.clear()
        for setups in (self.dials, self.inbounds, self.relinks):
            setups.clear()

    def remember_death(self, link: Link) -> None:
        """Note that the peer died, for the caller who will unlink it."""
        if link.is_mirror:
            return
        if len(self.dead) >= _MAX_REMEMBERED:
            del self.dead[next(iter(self.dead))]
        self.dead[link.cluster_id] = link
