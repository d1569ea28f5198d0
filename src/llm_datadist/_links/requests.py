"""Link and unlink clusters, found by their ids or addresses. Loop thread only."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final, final

from llm_datadist._control.backoff import Backoff
from llm_datadist._control.sockets import plain_address, printed, resolve
from llm_datadist._errors import LLMStatusCode
from llm_datadist._links.dial_request import DialRequest
from llm_datadist._links.dialer import dial
from llm_datadist._links.link import LinkResult, same_address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_datadist._control.deadline import Deadline
    from llm_datadist._control.sockets import Address
    from llm_datadist._links.context import LinkContext
    from llm_datadist._links.dial_request import DialOutcome
    from llm_datadist._links.lifecycle import LinkLifecycle
    from llm_datadist._links.link import Link
    from llm_datadist._links.reconnect import Reconnector
    from llm_datadist._protocol.messages import DomainHello
    from llm_datadist._types import LLMClusterInfo

__all__ = ["LinkRequests"]

#: Between dials of a peer that does not listen yet.
_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 0.25
_OK: Final = LLMStatusCode.LLM_SUCCESS


@final
class LinkRequests:
    """Carries out the calls of one instance that link and unlink clusters."""

    def __init__(
        self, context: LinkContext, lifecycle: LinkLifecycle, reconnector: Reconnector
    ) -> None:
        self._context = context
        self._lifecycle = lifecycle
        self._reconnector = reconnector

    async def link_all(
        self, clusters: Sequence[LLMClusterInfo], deadline: Deadline
    ) -> list[LinkResult]:
        """Link to several clusters at the same time."""
        results = await asyncio.gather(*(self._link(info, deadline) for info in clusters))
        statuses = self._context.statuses
        return [
            replace(result, status=statuses.get(result.status, result.status)) for result in results
        ]

    async def unlink_all(
        self, clusters: Sequence[LLMClusterInfo], deadline: Deadline, *, force: bool
    ) -> list[LinkResult]:
        """Unlink several clusters at the same time."""
        return list(
            await asyncio.gather(*(self._unlink(info, deadline, force=force) for info in clusters))
        )

    async def dial_any(
        self,
        addresses: Sequence[Address],
        deadline: Deadline,
        expected_cluster_id: int | None,
        source_ip: str | None,
        domain: DomainHello | None,
        answer_seconds: float = math.inf,
    ) -> LinkResult:
        """Link at the first address that works; the addresses that are left share the time."""
        failures: list[LinkResult] = []
        for position, address in enumerate(addresses):
            request = DialRequest(
                address=address,
                deadline=deadline.at_most(deadline.remaining() / (len(addresses) - position)),
                expected_cluster_id=expected_cluster_id,
                source_ip=source_ip,
                domain=domain,
                answer_seconds=answer_seconds,
            )
            outcome = await dial(self._context, self._lifecycle, request)
            if outcome.result.is_ok:
                return outcome.result
            # The answer of a peer comes first: it says more than a connection that failed.
            failures.insert(0 if outcome.answered else len(failures), outcome.result)
        if not failures:
            return LinkResult(LLMStatusCode.LLM_PARAM_INVALID, "no address to dial")
        return LinkResult(failures[0].status, "; ".join(failure.reason for failure in failures))

    async def _link(self, info: LLMClusterInfo, deadline: Deadline) -> LinkResult:
        """Link to one cluster at each of its addresses, which must all be of one instance.

        Each from the local address in the same place; the last one is for all that follow.
        """
        local = info.local_ip_info_list
        link: Link | None = None
        is_new = False
        for position, address in enumerate(info.remote_ip_info_list):
            request = DialRequest(
                address=address,
                deadline=deadline,
                expected_cluster_id=info.remote_cluster_id,
                expected_incarnation=None if link is None else link.incarnation,
                source_ip=local[min(position, len(local) - 1)][0] if local else None,
            )
            outcome = await self._dial(request)
            if not outcome.result.is_ok:
                if is_new and link is not None:
                    await self._lifecycle.unlink(link, deadline, wait_for_peer=False)
                return outcome.result
            link = outcome.result.link
            is_new |= outcome.is_new
        if link is not None:
            await self._reconnector.cancel_replaced(link)
        return LinkResult(_OK, link=link)

    async def _dial(self, request: DialRequest) -> DialOutcome:
        """Dial a peer; in first-generation mode again and again, until one answers.

        Programs of that generation link once and start both sides together.
        """
        backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        while True:
            outcome = await dial(self._context, self._lifecycle, request)
            if outcome.result.is_ok or outcome.answered or not self._context.first_generation:
                return outcome
            pause = backoff.next()
            if request.deadline.remaining() <= pause:
                return outcome
            await asyncio.sleep(pause)
            request = replace(request, is_repeated=True)

    async def _unlink(self, info: LLMClusterInfo, deadline: Deadline, *, force: bool) -> LinkResult:
        index = self._context.index
        lost = [*index.dead.values(), *(relink.lost for relink in index.relinks.values())]
        dead = await self._find(info, list(dict.fromkeys(lost)), deadline)
        await self._reconnector.cancel(dead)
        present = [*index.links.values(), *(link for link in index.leaving if not link.is_mirror)]
        links = [link for link in await self._find(info, present, deadline) if link not in dead]
        for link in dead:
            index.dead.pop(link.cluster_id, None)
            await self._lifecycle.unlink(link, deadline, wait_for_peer=False)
        if dead and not links and not force:
            return LinkResult(
                LLMStatusCode.LLM_NOTIFY_PROMPT_UNLINK_FAILED,
                f"cluster {dead[0].cluster_id} at {printed(dead[0].address)} cannot be notified, "
                f"its link was lost before: {dead[0].reason}; this end is unlinked",
            )
        result = LinkResult(_OK)
        for link in links:
            outcome = await self._lifecycle.unlink(link, deadline, wait_for_peer=not force)
            if not outcome.is_ok:
                result = outcome
        return result

    async def _find(
        self, info: LLMClusterInfo, links: list[Link], deadline: Deadline
    ) -> list[Link]:
        """Return the links of a cluster: by its id, else by its addresses, resolved if needed."""
        if info.remote_cluster_id is not None:
            return [link for link in links if link.cluster_id == info.remote_cluster_id]
        wanted = set(info.remote_ip_info_list)
        found = _at(wanted, links)
        if found or not links:
            return found
        for address in info.remote_ip_info_list:
            try:
                resolved = await deadline.limit(resolve(address, self._context.resolvers))
            except (OSError, asyncio.TimeoutError):
                continue
            wanted |= {plain_address(sockaddr) for _, sockaddr in resolved}
        return _at(wanted, links)


def _at(wanted: set[Address], links: list[Link]) -> list[Link]:
    return [
        link
        for link in links
        if any(same_address(one, other) for one in link.addresses for other in wanted)
    ]
