"""The links of one instance: those that are up, being set up, being torn down, and lost.

Only the loop thread changes them, and never across an await; `clear` is called after the loop has
ended. Any thread may read `links`, `dead` and `relinks`, and call `stats`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, final

from llm_datadist._control.deadline import Deadline
from llm_datadist._links.link import LinkState
from llm_datadist._types.stats import LinkStats

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from llm_datadist._control.sockets import Address
    from llm_datadist._links.link import Link

__all__ = ["LinkEnd", "LinkIndex", "Relink", "Setup", "WithdrawnError"]

_T = TypeVar("_T")

_MAX_REMEMBERED: Final = 1024
#: Time after which a set-up that waits for its dialer no longer delays another for the same peer.
STALL_SECONDS: Final = 2.0


class WithdrawnError(Exception):
    """This set-up was withdrawn in favor of another."""


@final
class Setup:
    """A link being set up, from the moment at which this end is committed to it.

    Attributes:
        cluster_id: Of the peer.
        incarnation: Of the peer.
        relink: Set when it re-establishes a lost link.
        address: Where the peer was dialed; set on the dialing end.
        holder: What the link is set up for; set on the dialing end.
        source: Local address of the connection; set on the dialing end.
        accepted: Whether the acceptor has accepted it; set on the dialing end.
        withdrawn: Set when another set-up must not wait any longer. This one gives up then, unless
            it is incoming and has all that it needs from its dialer.
        link: The link, once it has succeeded; set on the dialing end.
        ended: Set when it has succeeded or failed.
    """

    def __init__(
        self,
        cluster_id: int,
        incarnation: int,
        relink: Relink | None = None,
        address: Address | None = None,
        holder: str = "",
        source: Address | None = None,
    ) -> None:
        self.cluster_id = cluster_id
        self.incarnation = incarnation
        self.relink = relink
        self.address = address
        self.holder = holder
        self.source = source
        self.accepted = False
        self.link: Link | None = None
        self.withdrawn = asyncio.Event()
        self.ended = asyncio.Event()
        self._stalls = time.monotonic() + STALL_SECONDS

    @property
    def is_stalled(self) -> bool:
        """Whether it has taken so long that it must not delay other set-ups."""
        return time.monotonic() >= self._stalls

    async def wait_or_withdraw(self) -> None:
        """Wait until the set-up has ended; withdraw it first when it stalls.

        Without a secret a stranger can claim any id and incarnation, and then stall.
        """
        await self.wait_until_stalled()
        self.withdrawn.set()
        await self.ended.wait()

    async def wait_until_stalled(self) -> None:
        """Wait until the set-up has ended, or has taken so long that it counts as stalled."""
        with contextlib.suppress(asyncio.TimeoutError):
            await Deadline(max(0.0, self._stalls - time.monotonic())).limit(self.ended.wait())

    async def unless_withdrawn(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Await `work`; when the set-up is withdrawn first, cancel it and raise WithdrawnError."""
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
    """A lost link that is being re-established in the background.

    Attributes:
        lost: The link that was lost.
        task: Dials the peer; set as soon as the relink is pending.
        since: When the link was lost, on the clock of `time.monotonic`.
        attempts: Dials so far.
        failure: Why the last dial failed.
    """

    def __init__(self, lost: Link) -> None:
        self.lost = lost
        self.task: asyncio.Task[None] | None = None
        self.since = time.monotonic()
        self.attempts = 0
        self.failure = "none has ended"


class LinkEnd(NamedTuple):
    """The end of a link, for the texts of later calls.

    Attributes:
        reason: Why it ended.
        at: When, on the clock of `time.monotonic`.
        addresses: Of its peer.
    """

    reason: str
    at: float
    addresses: frozenset[Address]

    def __str__(self) -> str:
        seconds = time.monotonic() - self.at
        ago = f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.0f} s"
        return f"{self.reason} {ago} ago"


@final
class LinkIndex:
    """The links of one instance.

    Attributes:
        links: Links that are up, by the peer's cluster id.
        version: Changes with `links`.
        ends: Ends of links that are up, including mirrors, by link id.
        leaving: Links being torn down.
        mirrors: The accepting ends of links of this instance with itself.
        dead: The last link to a cluster id if the peer died, by cluster id; removed when the id is
            linked again or unlinked.
        ends_of: How the last link to a cluster id ended, until the id is linked again.
        dials: Set-ups that this end dialed, by the peer's incarnation.
        inbounds: Set-ups that a peer dialed, by its incarnation.
        relinks: Lost links that are being re-established, by the peer's cluster id.
    """

    def __init__(self) -> None:
        self.links: dict[int, Link] = {}
        self.version: int = 0
        self.ends: dict[int, Link] = {}
        self.leaving: set[Link] = set()
        self.mirrors: set[Link] = set()
        self.dead: dict[int, Link] = {}
        self.ends_of: dict[int, LinkEnd] = {}
        self.dials: dict[int, Setup] = {}
        self.inbounds: dict[int, Setup] = {}
        self.relinks: dict[int, Relink] = {}

    def stats(self, num_relinked: int) -> LinkStats:
        """Return how many links are in each state. Any thread."""
        leaving = [link.state for link in list(self.leaving)]
        dials = [setup for setup in list(self.dials.values()) if setup.relink is None]
        return LinkStats(
            connecting=len(dials) + len(self.inbounds),
            linked=len(self.links),
            unlinking=leaving.count(LinkState.UNLINKING),
            lost=leaving.count(LinkState.LOST),
            reconnecting=len(self.relinks),
            relinked=num_relinked,
        )

    def leaving_from(self, cluster_id: int) -> Link | None:
        """Return a link to that cluster id that is being torn down, or None."""
        return next((link for link in self.leaving if link.cluster_id == cluster_id), None)

    def rival_setup(self, cluster_id: int, incarnation: int) -> Setup | None:
        """Return a set-up with another instance of the same cluster id, or None."""
        setups = (*self.dials.values(), *self.inbounds.values())
        return next(
            (s for s in setups if s.cluster_id == cluster_id and s.incarnation != incarnation), None
        )

    def withdraw_stalled(self) -> bool:
        """Withdraw the oldest incoming set-up if it stalls; return whether it was withdrawn."""
        waiting = (setup for setup in self.inbounds.values() if not setup.withdrawn.is_set())
        oldest = next(waiting, None)
        if oldest is None or not oldest.is_stalled:
            return False
        oldest.withdrawn.set()
        return True

    def add(self, link: Link) -> None:
        """Add a link that is up."""
        self.ends[link.link_id] = link
        if link.is_mirror:
            self.mirrors.add(link)
        else:
            self.links[link.cluster_id] = link
            self.version += 1
            self.dead.pop(link.cluster_id, None)
            self.ends_of.pop(link.cluster_id, None)

    def remove(self, link: Link) -> None:
        """Move a link from those that are up to `leaving`."""
        self.ends.pop(link.link_id, None)
        if self.links.get(link.cluster_id) is link:
            del self.links[link.cluster_id]
            self.version += 1
        self.mirrors.discard(link)
        self.leaving.add(link)

    def clear(self) -> None:
        """Remove everything, after the loop has ended."""
        for links in (self.links, self.ends, self.leaving, self.mirrors, self.dead):
            links.clear()
        for others in (self.dials, self.inbounds, self.relinks, self.ends_of):
            others.clear()

    def end_at(self, address: Address) -> tuple[int, LinkEnd] | None:
        """Return the cluster id at an address and how the link to it ended, if it had one last."""
        ends = ((id_, end) for id_, end in self.ends_of.items() if address in end.addresses)
        return next(ends, None)

    def remember_end(self, link: Link) -> None:
        """Keep how a link ended, for the texts of later calls."""
        if link.is_mirror:
            return
        if len(self.ends_of) >= _MAX_REMEMBERED:
            del self.ends_of[next(iter(self.ends_of))]
        addresses = frozenset(link.addresses)
        self.ends_of[link.cluster_id] = LinkEnd(link.reason, time.monotonic(), addresses)

    def remember_death(self, link: Link) -> None:
        """Keep a link whose peer died, so that a later unlink can report it."""
        if link.is_mirror:
            return
        if len(self.dead) >= _MAX_REMEMBERED:
            del self.dead[next(iter(self.dead))]
        self.dead[link.cluster_id] = link
