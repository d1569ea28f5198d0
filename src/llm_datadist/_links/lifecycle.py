"""Links that are up: what arrives on them, whether they live, how they end. Loop thread only."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final, final

from llm_datadist._control.connection import Conversation, PeerClosedError
from llm_datadist._control.deadline import Deadline
from llm_datadist._control.sockets import printed
from llm_datadist._errors import LLMStatusCode
from llm_datadist._links.context import SetupError
from llm_datadist._links.lane_repair import Healing
from llm_datadist._links.link import Link, LinkResult, LinkState
from llm_datadist._protocol.codec import ProtocolError
from llm_datadist._protocol.messages import (
    Notify,
    Reopen,
    Reply,
    Request,
    Unlink,
    Unlinked,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future

    from llm_datadist._control.connection import ControlConnection
    from llm_datadist._control.sockets import Address
    from llm_datadist._links.context import LinkContext
    from llm_datadist._links.lane_terms import LaneTerms
    from llm_datadist._links.link import LinkData, Peer
    from llm_datadist._protocol.messages import Message

__all__ = ["Upkeep"]

logger = logging.getLogger("llm_datadist")

_ALIVE_SECONDS: Final = 1.0
_FAREWELL_SECONDS: Final = 1.0
#: How long finalize waits for its peers' ends, and for their hosts at least to have its own.
_PARTING_SECONDS: Final = 0.1
_DELIVERY_SECONDS: Final = 0.5
_PARTING_PAUSE: Final = 0.005
_MAX_ERROR_TEXT: Final = 4000


@final
class Upkeep:
    """Installs links and takes them down.

    Attributes:
        healing: Opens lost lanes of links that are up.
        on_linked: Called with each link that is installed. Set before the first one.
        on_lost: Called with each link that is lost, not with those that an end unlinks.
    """

    def __init__(self, context: LinkContext) -> None:
        self._context = context
        self._ledger = context.ledger
        self.healing = Healing(context)
        self.on_linked: Callable[[Link], None] = lambda link: None
        self.on_lost: Callable[[Link], None] = lambda link: None
        self._abandoned = False

    def install(
        self,
        peer: Peer,
        link_id: int,
        data: LinkData,
        connection: ControlConnection,
        terms: LaneTerms,
        holder: str,
        addresses: Iterable[Address] = (),
    ) -> Link:
        """Put a link into use and begin to listen to its peer; SetupError when finalized."""
        if self._abandoned:
            raise SetupError(
                LLMStatusCode.LLM_LINK_FAILED,
                f"cluster {self._context.cluster_id} was finalized while the link was set up",
            )
        link: Link
        conversation = Conversation(
            connection,
            lambda message: self._serve(link, message),
            lambda message: self._signalled(link, message),
            lambda reason: self._disconnected(link, reason),
        )
        self._context.generations[peer.cluster_id] += 1
        generation = self._context.generations[peer.cluster_id]
        link = Link(peer, link_id, generation, data, conversation, terms, addresses)
        link.holders |= {holder}
        link.enter(LinkState.LINKED)
        self._ledger.add(link)
        self.healing.admit(link)
        self.on_linked(link)
        self._context.control.spawn(conversation.run())
        logger.info(
            "linked to cluster %d at %s (incarnation %016x, link %d)",
            peer.cluster_id,
            printed(peer.address),
            peer.incarnation,
            link_id,
        )
        return link

    async def is_alive(self, link: Link, *, asks_lanes: bool = True) -> bool:
        """Return whether the peer answers in time.

        Args:
            link: The link over which it is asked.
            asks_lanes: Whether an answer on the lanes counts: that of a peer whose interpreter is
                busy. It does not where the same peer wants a link again, because its end of this
                one is gone.
        """
        try:
            await Deadline(_ALIVE_SECONDS).limit(link.conversation.ping())
        except PeerClosedError:
            with contextlib.suppress(asyncio.TimeoutError):  # it may have said goodbye
                await Deadline(_ALIVE_SECONDS).limit(link.conversation.over.wait())
            return False
        except asyncio.TimeoutError:
            if not asks_lanes:
                return False
            deadline_ns = time.monotonic_ns() + int(_ALIVE_SECONDS * 1e9)
            ping_all = self._context.delegate.ping_all
            answers = await self._context.workers.run(ping_all, [link.data], deadline_ns)
            return link.alive and any(answers)
        return link.alive

    async def drop(self, link: Link, reason: str, *, died: bool = True) -> None:
        """Give a link up as lost; return when no transfer of it touches memory."""
        self.lose(link, reason, died=died)
        await link.gone.wait()

    async def unlink(self, link: Link, deadline: Deadline, *, tell: bool) -> LinkResult:
        """Take a link down; return when no transfer of it touches memory here.

        Args:
            link: Any link of the table, or one that is on its way out already.
            deadline: For the peer's answer.
            tell: Whether to wait until the peer's end is gone as well.

        Returns:
            LLM_NOTIFY_PROMPT_UNLINK_FAILED when the peer did not answer; this end is gone all the
            same.
        """
        self._context.unlinked_sessions.append(link.terms.session)
        if not link.alive:
            await link.gone.wait()
            return LinkResult(LLMStatusCode.LLM_SUCCESS)
        self._leave(link, LinkState.UNLINKING, "unlinked at this end")
        connection = link.conversation.connection
        with contextlib.suppress(PeerClosedError):
            connection.send(Unlink(reason="unlinked by the peer"))
        try:
            if tell:
                with contextlib.suppress(asyncio.TimeoutError):
                    await deadline.limit(link.answered.wait())
            await link.gone.wait()
        finally:
            if link.peer_unlinks:
                self._say_unlinked(link)
            connection.finish(_FAREWELL_SECONDS)
        if not tell or link.peer_unlinks or link.peer_unlinked:
            return LinkResult(LLMStatusCode.LLM_SUCCESS)
        return LinkResult(
            LLMStatusCode.LLM_NOTIFY_PROMPT_UNLINK_FAILED,
            f"cluster {link.cluster_id} at {printed(link.address)} "
            + (
                "closed the connection without an answer"
                if link.answered.is_set()
                else f"did not answer within {deadline.seconds * 1000:.0f} ms"
            )
            + "; this end is unlinked, the peer has to unlink its own when it still runs",
        )

    def abandon_all(self, reason: str) -> list[Link]:
        """Take every link out of use at once and end its connection, for good; see `part`.

        Returns:
            The links whose data is still to be disconnected, by the caller.
        """
        self._abandoned = True
        for setup in (*self._ledger.dials.values(), *self._ledger.inbounds.values()):
            setup.over.set()
        links = [*self._ledger.links.values(), *self._ledger.mirrors]
        for link in links:
            self._ledger.remove(link)
            link.enter(LinkState.UNLINKING, reason)
            self.healing.end(link)
            with contextlib.suppress(PeerClosedError):
                link.conversation.connection.send(Unlink(reason="the peer was finalized"))
            link.conversation.finish(reason, _FAREWELL_SECONDS)
        return links

    @staticmethod
    async def part(links: Iterable[Link]) -> None:
        """Wait until the peers of abandoned links have read that they are, a moment at most.

        Peers that do not read get a little longer for their hosts to have taken it.
        """
        conversations = [link.conversation for link in links]
        deadline, parting = Deadline(_DELIVERY_SECONDS), Deadline(_PARTING_SECONDS)
        with contextlib.suppress(asyncio.TimeoutError):
            for each in conversations:
                await parting.limit(each.over.wait())
        for each in conversations:
            while deadline.remaining() and not each.connection.is_delivered:  # noqa: ASYNC110
                await asyncio.sleep(_PARTING_PAUSE)

    def lose(self, link: Link, reason: str, *, died: bool = True) -> None:
        """Give a link up as lost, if it is up, without waiting for the end of its transfers."""
        if not link.alive:
            return
        self._leave(link, LinkState.LOST, reason, tell_hook=True)
        if died:
            self._ledger.remember_death(link)
        link.conversation.connection.abort()
        logger.warning(
            "link to cluster %d at %s lost: %s", link.cluster_id, printed(link.address), reason
        )
        self.on_lost(link)

    def _leave(self, link: Link, state: LinkState, reason: str, *, tell_hook: bool = False) -> None:
        self._ledger.remove(link)
        link.enter(state, reason)
        self.healing.end(link)
        # Not in the task: that one may be cancelled before it begins.
        call = self._context.workers.submit(self._context.delegate.disconnect, link.data)
        self._context.control.spawn(self._dismantled(link, call, tell_hook=tell_hook))

    async def _dismantled(self, link: Link, call: Future[None], *, tell_hook: bool) -> None:
        try:
            await self._context.workers.outcome(call)
        except Exception:
            logger.exception("taking down link %d to cluster %d", link.link_id, link.cluster_id)
        link.enter(LinkState.GONE)
        self._ledger.leaving.discard(link)
        link.gone.set()
        on_lost = self._context.hooks.on_lost
        if tell_hook and on_lost is not None:
            await self._context.workers.run(on_lost, link)

    async def _follow(self, link: Link) -> None:
        """The peer unlinks: take this end down and say so."""
        await link.gone.wait()
        self._say_unlinked(link)
        link.conversation.connection.finish(_FAREWELL_SECONDS)

    async def _answer(self, link: Link) -> None:
        """Both ends unlink: answer the peer while this end waits for the same answer."""
        await link.gone.wait()
        self._say_unlinked(link)

    @staticmethod
    def _say_unlinked(link: Link) -> None:
        if not link.said_unlinked:
            link.said_unlinked = True
            with contextlib.suppress(PeerClosedError):
                link.conversation.connection.send(Unlinked())

    def _signalled(self, link: Link, message: Message) -> None:
        if isinstance(message, Unlinked):
            link.peer_unlinked = True
            link.answered.set()
        elif isinstance(message, Unlink):
            link.peer_unlinks = True
            if link.alive:
                logger.info("cluster %d at %s unlinked", link.cluster_id, printed(link.address))
                self._leave(link, LinkState.UNLINKING, message.reason, tell_hook=True)
                self._context.control.spawn(self._follow(link))
            else:
                self._context.control.spawn(self._answer(link))
        elif isinstance(message, Reopen):
            self.healing.asked(link, message.num_lanes)

    def _disconnected(self, link: Link, reason: str) -> None:
        link.answered.set()
        self.lose(link, reason)

    async def _serve(self, link: Link, message: Request | Notify) -> Reply | None:
        hooks, workers = self._context.hooks, self._context.workers
        try:
            if isinstance(message, Notify):
                if hooks.on_notify is not None:
                    await workers.run(hooks.on_notify, link, message.body)
                return None
            if hooks.on_request is None:
                return Reply(id=message.id, error="this instance answers no requests")
            return Reply(
                id=message.id, body=await workers.run(hooks.on_request, link, message.body)
            )
        except ProtocolError:
            raise  # ends the link
        except Exception as error:
            logger.warning("message of cluster %d failed", link.cluster_id, exc_info=True)
            if isinstance(message, Notify):
                return None
            return Reply(id=message.id, error=f"{error}"[:_MAX_ERROR_TEXT])
