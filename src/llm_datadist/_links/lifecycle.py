"""Put links into use, serve their messages, and take them down. Loop thread only."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final, final

from llm_datadist._control.connection import PeerClosedError
from llm_datadist._control.conversation import Conversation
from llm_datadist._control.deadline import Deadline
from llm_datadist._control.sockets import printed
from llm_datadist._errors import LLMStatusCode
from llm_datadist._links.context import SetupError
from llm_datadist._links.link import Link, LinkResult, LinkState
from llm_datadist._protocol.codec import ProtocolError
from llm_datadist._protocol.messages import (
    Join,
    Leave,
    Notify,
    Reopen,
    Reply,
    Request,
    Unlink,
    Unlinked,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from concurrent.futures import Future

    from llm_datadist._control.connection import ControlConnection
    from llm_datadist._control.sockets import Address
    from llm_datadist._links.context import LinkContext
    from llm_datadist._links.lane_repair import LaneRepair
    from llm_datadist._links.lane_terms import LaneTerms
    from llm_datadist._links.link import LinkData, Peer
    from llm_datadist._protocol.messages import Message

__all__ = ["LinkLifecycle"]

logger = logging.getLogger("llm_datadist")

_ALIVE_SECONDS: Final = 1.0
_FAREWELL_SECONDS: Final = 1.0
#: How long finalize waits for its peers to close, and for their hosts to acknowledge its messages.
_CLOSE_SECONDS: Final = 0.1
_DELIVERY_SECONDS: Final = 0.5
_DELIVERY_PAUSE: Final = 0.005
_MAX_ERROR_TEXT: Final = 4000


@final
class LinkLifecycle:
    """Installs links and takes them down.

    Args:
        context: The instance.
        lane_repair: Repairs the lanes of links that are up.

    Attributes:
        on_linked: Called with each link that is installed. Set before the first one.
        on_lost: Called with each link that is lost, not with those that an end unlinks.
        on_domain_message: Called with each Join and Leave.
    """

    def __init__(self, context: LinkContext, lane_repair: LaneRepair) -> None:
        self._context = context
        self._lane_repair = lane_repair
        self._index = context.index
        self.on_linked: Callable[[Link], None] = lambda link: None
        self.on_lost: Callable[[Link], None] = lambda link: None
        self.on_domain_message: Callable[[Link, Join | Leave], None] = lambda link, message: None

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
        """Put a link into use and start receiving from its peer; SetupError when finalized."""
        if self._context.is_closed:
            raise SetupError(
                LLMStatusCode.LLM_LINK_FAILED,
                f"cluster {self._context.cluster_id} was finalized while the link was set up",
            )
        link: Link
        conversation = Conversation(
            connection,
            lambda message: self._on_message(link, message),
            lambda message: self._on_signal(link, message),
            lambda reason: self._on_closed(link, reason),
        )
        self._context.generations[peer.cluster_id] += 1
        generation = self._context.generations[peer.cluster_id]
        link = Link(peer, link_id, generation, data, conversation, terms, addresses)
        link.holders |= {holder}
        link.enter(LinkState.LINKED)
        self._index.add(link)
        self._lane_repair.add_link(link)
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

    async def is_alive(
        self, link: Link, *, asks_lanes: bool = True, seconds: float | None = None
    ) -> bool:
        """Return whether the peer answers in time.

        Args:
            link: The link over which the peer is pinged.
            asks_lanes: Whether an answer on a lane counts, which a peer with a busy interpreter
                gives. It must not count where the same peer dials again, because its end of this
                link is gone then.
            seconds: For the answer on the control connection; None for the usual time.
        """
        try:
            await Deadline(seconds or _ALIVE_SECONDS).limit(link.conversation.ping())
        except PeerClosedError:
            with contextlib.suppress(asyncio.TimeoutError):  # it may have unlinked
                await Deadline(_ALIVE_SECONDS).limit(link.conversation.ended.wait())
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
        """Call `lose`, and return when no transfer of the link touches memory."""
        self.lose(link, reason, died=died)
        await link.gone.wait()

    async def unlink(self, link: Link, deadline: Deadline, *, wait_for_peer: bool) -> LinkResult:
        """Take a link down; return when none of its transfers touches memory of this end.

        Args:
            link: A link of the table, or one that is being taken down already.
            deadline: For the peer's answer.
            wait_for_peer: Whether to wait until the peer's end is gone as well.

        Returns:
            LLM_NOTIFY_PROMPT_UNLINK_FAILED when the peer did not answer; this end is gone anyway.
        """
        self._context.unlinked_sessions.append(link.terms.session)
        if not link.alive:
            await link.gone.wait()
            return LinkResult(LLMStatusCode.LLM_SUCCESS)
        self._call_before_unlink()
        self._leave(link, LinkState.UNLINKING, "unlinked at this end")
        connection = link.conversation.connection
        with contextlib.suppress(PeerClosedError):
            connection.send(Unlink(reason="unlinked by the peer"))
        try:
            if wait_for_peer:
                with contextlib.suppress(asyncio.TimeoutError):
                    await deadline.limit(link.answered.wait())
            await link.gone.wait()
        finally:
            if link.unlink_received:
                self._send_unlinked(link)
            connection.finish(_FAREWELL_SECONDS)
        if not wait_for_peer or link.unlink_received or link.unlinked_received:
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

    async def release(self, link: Link, holder: str) -> None:
        """Remove a holder of a link at this end; unlink it when none is left. Idempotent."""
        link.holders -= {holder}
        if not link.holders:
            await self.unlink(link, Deadline(0), wait_for_peer=False)

    def end_all(self, reason: str) -> list[Link]:
        """Take every link out of use, end its connection, and install no further link.

        Returns:
            The ended links; the caller must disconnect their data. See `wait_delivered`.
        """
        self._call_before_unlink()
        links = [*self._index.links.values(), *self._index.mirrors]
        for link in links:
            self._index.remove(link)
            link.enter(LinkState.UNLINKING, reason)
            self._lane_repair.remove_link(link)
            with contextlib.suppress(PeerClosedError):
                link.conversation.connection.send(Unlink(reason="the peer was finalized"))
            link.conversation.finish(reason, _FAREWELL_SECONDS)
        return links

    def _call_before_unlink(self) -> None:
        if self._context.hooks.on_unlink is not None:
            self._context.hooks.on_unlink()

    async def wait_delivered(self, links: Collection[Link]) -> None:
        """Wait a moment until the peers of ended links have read the Unlink and closed.

        Links that an Unlink has begun to take down are waited for as well: their peers await an
        answer. For peers that do not read, wait a little longer until their hosts have received it.
        """
        leaving = self._index.leaving.difference(links)
        conversations = [link.conversation for link in (*links, *leaving)]
        deadline, closing = Deadline(_DELIVERY_SECONDS), Deadline(_CLOSE_SECONDS)
        with contextlib.suppress(asyncio.TimeoutError):
            for link in leaving:
                await deadline.limit(link.gone.wait())  # then it answers
            for each in conversations:
                await closing.limit(each.ended.wait())
        for each in conversations:
            while deadline.remaining() and not each.connection.is_delivered:  # noqa: ASYNC110
                await asyncio.sleep(_DELIVERY_PAUSE)

    def lose(self, link: Link, reason: str, *, died: bool = True) -> None:
        """Take a link that is up out of use as lost; do not wait for the end of its transfers."""
        if not link.alive:
            return
        self._leave(link, LinkState.LOST, reason, call_hook=True)
        if died:
            self._index.remember_death(link)
        link.conversation.connection.abort()
        logger.warning(
            "link to cluster %d at %s lost: %s", link.cluster_id, printed(link.address), reason
        )
        self.on_lost(link)

    def _leave(self, link: Link, state: LinkState, reason: str, *, call_hook: bool = False) -> None:
        self._index.remove(link)
        link.enter(state, reason)
        self._index.remember_end(link)
        self._lane_repair.remove_link(link)
        # Submitted here because the task may be canceled before it starts.
        call = self._context.workers.submit(self._context.delegate.disconnect, link.data)
        self._context.control.spawn(self._wait_disconnected(link, call, call_hook=call_hook))

    async def _wait_disconnected(self, link: Link, call: Future[None], *, call_hook: bool) -> None:
        try:
            await self._context.workers.outcome(call)
        except Exception:  # of a data path's library, say: the link must end all the same
            logger.exception("taking down link %d to cluster %d", link.link_id, link.cluster_id)
        link.enter(LinkState.GONE)
        self._index.leaving.discard(link)
        link.gone.set()
        on_lost = self._context.hooks.on_lost
        if call_hook and on_lost is not None:
            await self._context.workers.run(on_lost, link)

    async def _confirm_unlink(self, link: Link, *, finish: bool) -> None:
        """Answer the peer's Unlink when this end is gone; `finish` also ends the connection."""
        await link.gone.wait()
        self._send_unlinked(link)
        if finish:
            link.conversation.connection.finish(_FAREWELL_SECONDS)

    @staticmethod
    def _send_unlinked(link: Link) -> None:
        if not link.unlinked_sent:
            link.unlinked_sent = True
            with contextlib.suppress(PeerClosedError):
                link.conversation.connection.send(Unlinked())

    def _on_signal(self, link: Link, message: Message) -> None:
        if isinstance(message, Unlinked):
            link.unlinked_received = True
            link.answered.set()
        elif isinstance(message, Unlink):
            link.unlink_received = True
            if link.alive:
                logger.info(
                    "cluster %d at %s unlinked: %s",
                    link.cluster_id,
                    printed(link.address),
                    message.reason,
                )
                self._leave(link, LinkState.UNLINKING, message.reason, call_hook=True)
                self._context.control.spawn(self._confirm_unlink(link, finish=True))
            else:
                self._context.control.spawn(self._confirm_unlink(link, finish=False))
        elif isinstance(message, Reopen):
            self._lane_repair.on_reopen(link, message.num_lanes)
        elif isinstance(message, (Join, Leave)):
            self.on_domain_message(link, message)

    def _on_closed(self, link: Link, reason: str) -> None:
        link.answered.set()
        self.lose(link, reason)

    async def _on_message(self, link: Link, message: Request | Notify) -> Reply | None:
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
        except Exception as error:  # whatever it is: the peer waits for an answer
            logger.warning("message of cluster %d failed", link.cluster_id, exc_info=True)
            if isinstance(message, Notify):
                return None
            return Reply(id=message.id, error=f"{error}"[:_MAX_ERROR_TEXT])
