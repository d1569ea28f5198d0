"""Messages about domains on a link that is up. Loop thread only."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final, final

from llm_datadist._control.connection import PeerClosedError
from llm_datadist._control.conversation import RemoteError
from llm_datadist._control.deadline import Deadline
from llm_datadist._control.sockets import printed
from llm_datadist._errors import LLMStatusCode
from llm_datadist._links.delegate import Refusal
from llm_datadist._links.link import LinkResult
from llm_datadist._protocol.messages import Join, Joined, Leave

if TYPE_CHECKING:
    from llm_datadist._links.context import LinkContext
    from llm_datadist._links.lifecycle import LinkLifecycle
    from llm_datadist._links.link import Link
    from llm_datadist._protocol.messages import DomainHello

__all__ = ["DomainMessages"]

logger = logging.getLogger("llm_datadist")

_OK: Final = LLMStatusCode.LLM_SUCCESS
_MAX_REASON: Final = 4000


@final
class DomainMessages:
    """Enters links for domains, and ends their use, together with the peer."""

    def __init__(self, context: LinkContext, lifecycle: LinkLifecycle) -> None:
        self._context = context
        self._lifecycle = lifecycle

    def receive(self, link: Link, message: Join | Leave) -> None:
        """Serve a message of the peer."""
        control = self._context.control
        if isinstance(message, Leave):
            if not self._is_needed(link, message):
                control.spawn(self._lifecycle.release(link, message.holder))
            return
        refusal = self._entered(link, message.domain)
        status, reason = (_OK, "") if refusal is None else (refusal.status, refusal.reason)
        # At once, so that the answer arrives before the Unlink of a caller that saw the outcome.
        with contextlib.suppress(PeerClosedError):
            link.conversation.connection.send(
                Joined(id=message.id, status=int(status), reason=reason[:_MAX_REASON])
            )
        if refusal is not None:
            control.spawn(self._lifecycle.release(link, message.domain.holder))

    def _entered(self, link: Link, domain: DomainHello) -> Refusal | None:
        hook = self._context.hooks.on_domain_join
        if hook is None:
            return Refusal(LLMStatusCode.LLM_LINK_FAILED, "this instance has no domains")
        if not link.alive:
            return Refusal(LLMStatusCode.LLM_NOT_YET_LINK, "the link is being taken down")
        try:
            refusal = hook(domain, link)
        except Exception as error:  # a defect of the hook: the peer gets an answer
            logger.exception("a domain of cluster %d", link.cluster_id)
            return Refusal(LLMStatusCode.LLM_FAILED, f"the domain is refused: {error}")
        if refusal is None:
            link.hold_for_peer(domain.holder)
        return refusal

    def _is_needed(self, link: Link, message: Leave) -> bool:
        hook = self._context.hooks.on_domain_leave
        try:
            return hook is not None and hook(message, link)
        except Exception:  # a defect of the hook: the domain counts as gone
            logger.exception("a domain of cluster %d", link.cluster_id)
            return False

    async def join(self, link: Link, domain: DomainHello, seconds: float) -> LinkResult:
        """Ask the peer to enter a link for a domain; see `LinkTable.join`."""
        place = printed(link.address)
        if not link.alive:
            return LinkResult(LLMStatusCode.LLM_LINK_FAILED, f"{place}: {link.reason}")
        link.holders |= {domain.holder}
        try:
            answer = await Deadline(seconds).limit(link.conversation.join(domain))
        except asyncio.TimeoutError:
            problem = f"{place}: no answer within {seconds * 1000:.0f} ms over the link"
            return LinkResult(LLMStatusCode.LLM_TIMEOUT, problem)
        except (PeerClosedError, RemoteError) as error:
            problem = f"{place}: the link ended ({link.reason or error})"
            return LinkResult(LLMStatusCode.LLM_LINK_FAILED, problem)
        if answer.status == _OK:
            return LinkResult(_OK, link=link)
        try:
            status = LLMStatusCode(answer.status)
        except ValueError:
            status = LLMStatusCode.LLM_LINK_FAILED
        return LinkResult(status, f"{place}: {answer.reason}")

    def leave(self, link: Link, message: Leave) -> None:
        """Tell the peer that this end's part of a domain has ended."""
        if link.alive:
            with contextlib.suppress(PeerClosedError):
                link.conversation.connection.send(message)
