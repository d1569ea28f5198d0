"""The link table: every link of one instance, for callers on any thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import threading
import time
from typing import TYPE_CHECKING, Final, final

from llm_datadist._control.deadline import Deadline
from llm_datadist._control.listener import ConnectionRouter, IncomingConnection
from llm_datadist._control.loop import ControlLoop
from llm_datadist._errors import LLMException, finalized
from llm_datadist._links.acceptor import receive_link
from llm_datadist._links.context import LinkContext
from llm_datadist._links.delegate import Hooks
from llm_datadist._links.domain_messages import DomainMessages
from llm_datadist._links.engine_messages import EngineMessages
from llm_datadist._links.failures import linked_clusters, not_linked
from llm_datadist._links.heartbeat import Heartbeat
from llm_datadist._links.lane_repair import LaneRepair
from llm_datadist._links.lane_setup import receive_lane
from llm_datadist._links.lifecycle import LinkLifecycle
from llm_datadist._links.listeners import Listeners
from llm_datadist._links.reconnect import Reconnector
from llm_datadist._links.requests import LinkRequests
from llm_datadist._logs import later
from llm_datadist._protocol.codec import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_datadist._control.sockets import Address
    from llm_datadist._links.delegate import LinkDelegate
    from llm_datadist._links.link import Link, LinkResult
    from llm_datadist._options.settings import Config
    from llm_datadist._protocol.messages import DomainHello, Leave
    from llm_datadist._types import LLMClusterInfo
    from llm_datadist._types.stats import LinkStats

__all__ = ["LinkTable"]

logger = logging.getLogger("llm_datadist")

_CLOSE_SECONDS: Final = 5.0


@final
class LinkTable:
    """Makes, finds and ends the links of one instance. Thread-safe; calls block.

    A link joins two instances and serves both. There is at most one link per cluster id. It stays
    up while `link_clusters` or a domain holds it at either end. The death of a peer is detected at
    once through the link's connection, its silence by the heartbeat. Lost lanes are replaced while
    the peer is alive. A lost link that `link_clusters` of this end made is re-established when the
    peer is back.

    Every call on a table that was closed, or is being closed, raises LLMException with
    LLM_ENGINE_FINALIZED.

    Args:
        cluster_id: Of this instance.
        config: The options.
        incarnation: Random number of this initialization.
        delegate: The data plane.

    Attributes:
        hooks: Callbacks; set before `start`.
    """

    def __init__(
        self, cluster_id: int, config: Config, incarnation: int, delegate: LinkDelegate
    ) -> None:
        self.hooks: Hooks = Hooks()
        self._control = ControlLoop(f"llm-datadist-control-{cluster_id}")
        self._context = LinkContext(
            cluster_id, config, incarnation, delegate, self.hooks, self._control
        )
        self._lane_repair = LaneRepair(self._context)
        self._lifecycle = LinkLifecycle(self._context, self._lane_repair)
        self._reconnector = Reconnector(self._context, self._lifecycle)
        self._lifecycle.on_linked = self._reconnector.on_linked
        self._lifecycle.on_lost = self._reconnector.on_lost
        self._requests = LinkRequests(self._context, self._lifecycle, self._reconnector)
        self._messages = EngineMessages(self._context)
        self._domain_messages = DomainMessages(self._context, self._lifecycle)
        self._lifecycle.on_domain_message = self._domain_messages.receive
        router = ConnectionRouter(
            self._control,
            {Kind.CONTROL: self._receive_link, Kind.LANE: self._receive_lane},
            config.tls and config.tls.accepting,
        )
        self._listeners = Listeners(self._context, router)
        self._changing = threading.Lock()  # held by start, relisten, listeners, close
        self._pid = os.getpid()

    # Life cycle

    def start(self, listen: Address | None, *more: Address) -> None:
        """Start the control thread and accept links at an address, if one is given. Once only.

        Args:
            listen: (host, port); port 0 lets the system choose; None for a client.
            more: Further addresses.

        Raises:
            OSError: An address cannot be bound; nothing was started.
        """
        with later(), self._changing:
            self._control.start()
            if self._context.heartbeat_seconds:
                self._control.post(self._begin_heartbeat)
            try:
                self._listeners.move("init", listen, *more)
            except BaseException:
                self._control.stop()
                raise

    def _begin_heartbeat(self) -> None:
        self._control.spawn(
            Heartbeat(self._context, self._lane_repair.start, self._lifecycle.lose).run()
        )

    @property
    def listen_address(self) -> Address | None:
        """Bound address at which links are accepted; None for a client."""
        return self._context.listen_address

    def relisten(self, listen: Address | None, *more: Address) -> None:
        """Accept links at other addresses, or none; stop re-establishing lost links.

        Raises:
            OSError: An address cannot be bound; nothing has changed.
        """
        operation = "switch_role"
        with later(), self._changing:
            self._listeners.move(operation, listen, *more)
            self._control.run(self._reconnector.cancel_all(), operation)

    def open_listener(self, host: str, port: int) -> Address:
        """Accept links at a further address; return the bound address.

        Raises:
            OSError: It cannot be bound.
        """
        with later(), self._changing:
            return self._listeners.open((host, port), "link")

    def close_listener(self, address: Address) -> None:
        """Stop accepting at an address that `open_listener` returned. Idempotent."""
        with later(), self._changing:
            self._listeners.close(address, "unlink")

    def check_thread(self, operation: str) -> None:
        """Raise LLM_FAILED on the control thread, for which a waiting call would wait forever."""
        if self._control.is_own_thread:
            raise self._control.own_thread(operation)

    def close(self) -> bool:
        """End every link and notify the peers. Idempotent, bounded, never raises.

        When it returns, the delegate has disconnected every link, the port is free and the control
        thread has ended. Running calls of other threads raise LLM_ENGINE_FINALIZED.

        Returns:
            Whether this call closed the table and all its threads have ended.
        """
        with later(), self._changing:
            if self._context.is_closed or os.getpid() != self._pid:
                return False
            self._context.is_closed = True
            links: list[Link] = []
            with contextlib.suppress(LLMException):  # it was never started
                links = self._control.run(self._shut(), "finalize")
                self._control.run(self._lifecycle.wait_delivered(links), "finalize")
            self._control.stop()
        for link in links:  # on this thread: at interpreter exit none can be started
            try:
                self._context.delegate.disconnect(link.data)
            except Exception:  # the other links must end all the same
                logger.exception("taking down link %d", link.link_id)
        self._context.index.clear()
        if not (is_quiet := self._context.workers.wait_idle(_CLOSE_SECONDS)):
            logger.warning("finalize: a call that takes a link down has not returned")
        self._context.workers.dismiss()
        self._context.resolvers.dismiss()
        if self._context.relays is not None:
            self._context.relays.close()
        return is_quiet

    async def _shut(self) -> list[Link]:
        self._listeners.close_all()
        self._reconnector.close()
        return self._lifecycle.end_all("the instance was finalized")

    # Links

    def link_clusters(
        self, clusters: Sequence[LLMClusterInfo], timeout_ms: int
    ) -> list[LinkResult]:
        """Link to several clusters at the same time; one result each, in order.

        Failures are returned, not raised; see api.md 4.4 for the statuses.

        Args:
            clusters: Each with at least one remote address.
            timeout_ms: For the whole call.
        """
        deadline = Deadline(timeout_ms / 1000)
        return self._control.run(self._requests.link_all(clusters, deadline), "link_clusters")

    def unlink_clusters(
        self, clusters: Sequence[LLMClusterInfo], timeout_ms: int, force: bool = False
    ) -> list[LinkResult]:
        """Unlink several clusters at the same time, regardless of holders; results in order.

        When it returns, no transfer of those links touches memory, whatever the status.

        Args:
            clusters: Each found by its id if it has one, else by its remote addresses.
            timeout_ms: For the peers' answers.
            force: Take down this end without waiting for the peer's.
        """
        deadline = Deadline(timeout_ms / 1000)
        return self._control.run(
            self._requests.unlink_all(clusters, deadline, force=force), "unlink_clusters"
        )

    def dial_peer(
        self,
        addresses: Sequence[Address],
        timeout_ms: float,
        *,
        expected_cluster_id: int | None = None,
        source_ip: str | None = None,
        domain: DomainHello | None = None,
        answer_timeout_ms: float = math.inf,
    ) -> LinkResult:
        """Link to the instance at the first of several addresses that works.

        The result carries the link. With `domain` both ends hold the link for it until `release`;
        an existing link is used, and the call waits while one is being set up or taken down. The
        link is not entered for the domain before `join`.

        Args:
            addresses: Candidates in order; those that are left share the remaining time.
            timeout_ms: For the whole call.
            answer_timeout_ms: For the first answer at each address.
            expected_cluster_id: Refuse any other peer.
            source_ip: Local ip to connect from.
            domain: Passed to the accepting end's `on_domain_hello`, which must accept it.
        """
        return self._control.run(
            self._requests.dial_any(
                addresses,
                Deadline(timeout_ms / 1000),
                expected_cluster_id,
                source_ip,
                domain,
                answer_timeout_ms / 1000,
            ),
            "link",
        )

    def join(self, link: Link, domain: DomainHello, timeout_ms: float) -> LinkResult:
        """Hold a link for a domain, and ask the peer to do the same.

        LLM_SUCCESS when the peer's `on_domain_join` has entered it. It may have even after a
        failure without the peer's answer; both ends must then `release` the link, or join again.

        Args:
            link: The link to the acceptor of the domain.
            domain: Passed to the peer's `on_domain_join`.
            timeout_ms: For the peer's answer.
        """
        joining = self._domain_messages.join(link, domain, timeout_ms / 1000)
        return self._control.run(joining, "link")

    def leave(self, link: Link, message: Leave) -> None:
        """Tell the peer that this end's part of a domain has ended. Never blocks or raises."""
        self._control.post(self._domain_messages.leave, link, message)

    def release(self, link: Link, holder: str) -> None:
        """Remove a holder of a link at this end; unlink it when none is left. Idempotent.

        No transfer of an unlinked link touches memory after this returns.
        """
        self._control.run(self._lifecycle.release(link, holder), "unlink")

    def repair_lanes(self, link_id: int) -> None:
        """Replace lost lanes of a link in the background. Never blocks."""
        self._control.post(self._lane_repair.start_by_id, link_id)

    def drop(self, link: Link, reason: str) -> None:
        """Take a link out of use as lost, because its peer misbehaves. Idempotent.

        No transfer of the link touches memory after this returns.
        """
        self._control.run(self._lifecycle.drop(link, reason), "drop")

    def call_later(self, seconds: float, call: Callable[[], object]) -> None:
        """Call `call` on a worker after some time, if the table is open then. Never blocks."""
        self._control.post(self._call_later, seconds, call)

    def _call_later(self, seconds: float, call: Callable[[], object]) -> None:
        asyncio.get_running_loop().call_later(seconds, self._context.workers.submit, call)

    def post(self, call: Callable[[], object], seconds: float = 0.0) -> None:
        """Call `call` on the control thread after some time, if it runs then. Never blocks.

        The call must not block.
        """
        self._control.post(self._post, call, seconds) if seconds else self._control.post(call)

    @staticmethod
    def _post(call: Callable[[], object], seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, call)

    # Queries

    def get(self, cluster_id: int, operation: str = "get") -> Link:
        """Return the link to a cluster. Never blocks.

        Raises:
            LLMException: LLM_NOT_YET_LINK: there is none.
        """
        link = self._context.index.links.get(cluster_id)
        if link is not None:
            return link
        if self._context.is_closed:
            raise finalized(operation, cluster_id)
        raise not_linked(operation, self._context.index, cluster_id, self._context.cluster_id)

    def links(self) -> list[Link]:
        """Return the links that are up. Never blocks."""
        return list(self._context.index.links.values())

    def names(self) -> str:
        """Name the linked clusters, for a text."""
        return linked_clusters(self._context.index)

    def describe(self, cluster_id: int) -> dict[str, object]:
        """Return the facts that `describe_link` shows; LLM_NOT_YET_LINK when there is no link."""
        facts = self.get(cluster_id, "describe_link").describe()
        return {**facts, "relinked": self._reconnector.num_reconnects(cluster_id)}

    def stats(self) -> LinkStats:
        """Return how many links are in each state. Never blocks."""
        return self._context.index.stats(self._reconnector.num_relinked)

    def describe_relinks(self) -> list[dict[str, object]]:
        """Return the facts of lost links that are being re-established. Never blocks."""
        return self._reconnector.describe()

    def check(self, cluster_id: int, timeout_ms: float) -> None:
        """Return when the peer's control plane answers on the link.

        Raises:
            LLMException: LLM_NOT_YET_LINK, LLM_TIMEOUT, or LLM_LINK_FAILED when the peer dies.
        """
        operation = "check_link_status"
        link = self.get(cluster_id, operation)
        self._control.run(self._messages.ping(link, timeout_ms, operation), operation)

    # Engine messages

    def notify(self, link: Link, body: bytes) -> None:
        """Send a message to the peer's `on_notify`; return when it is queued.

        Raises:
            LLMException: LLM_LINK_FAILED: the link is gone.
            ValueError: The body is larger than a message may be.
        """
        self._control.run(self._messages.notify(link, body), "notify")

    def try_notify(self, link: Link, body: bytes) -> bool:
        """Send a message that may be lost to the peer's `on_notify`. Control thread only.

        Returns:
            Whether it was queued: not if the link is gone, or the peer does not read.
        """
        return self._messages.try_notify(link, body)

    def request(
        self, link: Link, body: bytes, timeout_ms: float, operation: str = "request"
    ) -> bytes:
        """Send a message to the peer's `on_request` and return its answer.

        Raises:
            LLMException: LLM_TIMEOUT; LLM_LINK_FAILED: the link is or goes down; LLM_FAILED: the
                peer's hook raised, with its text.
            ValueError: The body is larger than a message may be.
        """
        request = self._messages.request(link, body, timeout_ms, operation)
        return self._control.run(request, operation)

    def request_all(
        self,
        links: Sequence[Link],
        body: bytes,
        deadline_ns: int,
        on_failure: Callable[[Link, LLMException], None],
    ) -> None:
        """Send one request over several links at the same time and wait for all answers.

        Args:
            links: The links.
            body: The request; the answers are discarded.
            deadline_ns: On the clock of `time.monotonic_ns`.
            on_failure: Called on this thread for each link without an answer, one at a time.
        """
        timeout_ms = max(0.0, (deadline_ns - time.monotonic_ns()) / 1e6)
        outcomes = self._control.run(self._messages.request_all(links, body, timeout_ms), "request")
        for link, outcome in zip(links, outcomes, strict=True):
            if outcome is not None:
                on_failure(link, outcome)

    # Incoming connections

    async def _receive_link(self, incoming: IncomingConnection) -> None:
        await receive_link(self._context, self._lifecycle, incoming)

    async def _receive_lane(self, incoming: IncomingConnection) -> None:
        await receive_lane(self._context, incoming)
