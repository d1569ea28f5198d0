"""Messages between the layers above of two linked instances. Loop thread only."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, final

from llm_datadist._control.connection import PeerClosedError
from llm_datadist._control.conversation import RemoteError
from llm_datadist._control.deadline import Deadline
from llm_datadist._errors import LLMException, LLMStatusCode, fail, finalized
from llm_datadist._links.failures import link_ended, timed_out
from llm_datadist._protocol.messages import Notify

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_datadist._links.context import LinkContext
    from llm_datadist._links.link import Link

__all__ = ["EngineMessages"]


@final
class EngineMessages:
    """Sends requests and notifications over links."""

    def __init__(self, context: LinkContext) -> None:
        self._context = context

    async def ping(self, link: Link, timeout_ms: float, operation: str) -> None:
        """Return when the peer's control plane has answered.

        Raises:
            LLMException: LLM_TIMEOUT, or LLM_LINK_FAILED: the link is gone.
        """
        try:
            await Deadline(timeout_ms / 1000).limit(link.conversation.ping())
        except asyncio.TimeoutError:
            raise timed_out(operation, link, timeout_ms) from None
        except PeerClosedError as error:
            raise self._link_ended(operation, link, error) from error

    async def notify(self, link: Link, body: bytes) -> None:
        """Send a message to the peer's `on_notify`; see `LinkTable.notify`."""
        try:
            link.conversation.connection.send(Notify(body=body))
        except PeerClosedError as error:
            raise self._link_ended("notify", link, error) from error

    def try_notify(self, link: Link, body: bytes) -> bool:
        """Send a message to the peer's `on_notify`; see `LinkTable.try_notify`."""
        connection = link.conversation.connection
        if connection.is_congested:
            return False
        try:
            connection.send(Notify(body=body))
        except PeerClosedError:
            return False
        return True

    async def request(self, link: Link, body: bytes, timeout_ms: float, operation: str) -> bytes:
        """Send a message to the peer's `on_request`; see `LinkTable.request`."""
        try:
            return await Deadline(timeout_ms / 1000).limit(link.conversation.ask(body))
        except asyncio.TimeoutError:
            raise timed_out(operation, link, timeout_ms) from None
        except PeerClosedError as error:
            raise self._link_ended(operation, link, error) from error
        except RemoteError as error:
            raise fail(
                LLMStatusCode.LLM_FAILED,
                operation,
                f"the peer could not do it: {error}",
                "see the peer's log",
                cluster_id=link.cluster_id,
            ) from error

    async def request_all(
        self, links: Sequence[Link], body: bytes, timeout_ms: float
    ) -> list[LLMException | None]:
        """Send one request over several links at the same time; return the failure of each."""

        async def ask(link: Link) -> LLMException | None:
            try:
                await self.request(link, body, timeout_ms, "request")
            except LLMException as error:
                return error
            return None

        return list(await asyncio.gather(*map(ask, links)))

    def _link_ended(self, operation: str, link: Link, error: PeerClosedError) -> LLMException:
        if self._context.is_closed:
            return finalized(operation, link.cluster_id)
        return link_ended(operation, link, str(error))
