"""The link table: every link of one instance, for callers on any thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Final, final

from llm_datadist._control.connection import PeerClosedError, RemoteError
from llm_datadist._control.deadline import Deadline
from llm_datadist._control.listener import Doorway, Visit
from llm_datadist._control.loop import ControlLoop
from llm_datadist._control.sockets import printed
from llm_datadist._errors import LLMException, LLMStatusCode, fail
from llm_datadist._links.acceptor import receive_link
from llm_datadist._links.context import LinkContext
from llm_datadist._links.delegate import Hooks
from llm_datadist._links.failures import finalized, timed_out
from llm_datadist._links.heartbeat import Heartbeat
from llm_datadist._links.lane_repair import LaneRepair
from llm_datadist._links.lane_setup import receive_lane
from llm_datadist._links.lifecycle import LinkLifecycle
from llm_datadist._links.listeners import Listeners
from llm_datadist._links.reconnect import Reconnector
from llm_datadist._links.requests import LinkRequests
from llm_datadist._logs import later
from llm_datadist._protocol.codec import Kind
from llm_datadist._protocol.messages import Notify

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_datadist._control.sockets import Address
    from llm_datadist._links.delegate import LinkDelegate
    from llm_datadist._links.link import Link, LinkResult
    from llm_datadist._options import Config
    from llm_datadist._protocol.messages import DomainHello
    from llm_datadist._types import LLMClusterInfo

__all__ = ["LinkTable"]

logger = logging.getLogger("llm_datadist")

_CLOSE_SECONDS: Final = 5.0


@final
class LinkTable:
    """Makes, finds and ends the links of one instance. Thread-safe; calls block.

    A link joins two instances and serves both. It is known by the peer's cluster id, so there is
    one per id, and it lives while `link_clusters` or a domain holds it at either end. The death of
    a peer is noticed at once through the link's connection, its silence by heartbeats. Lanes that
    are lost while the peer lives are opened anew; a link that `link_clusters` of this end made, and
    that is lost, is made again when the peer is back.

    Every call on a table that was closed, or is being closed, raises LLMException with
    LLM_ENGINE_FINALIZED.

    Args:
        cluster_id: Own id.
        config: Read for the secret and the number of lanes.
        incarnation: Random number of this life of the instance.
        delegate: The data plane.

    Attributes:
        hooks: Callbacks; set before `start`.
    """

    def __init__(
        self, cluster_id: int, config: Config, incarnation: int, delegate: LinkDelegate
    ) -> None:
        self.hooks = Hooks()
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
        doorway = Doorway(
            self._control,
            {Kind.CONTROL: self._receive_link, Kind.LANE: self._receive_lane},
            config.tls and config.tls.accepting,
        )
        self._listeners = Listeners(self._context, doorway)
        self._changing = threading.Lock()  # start, relisten, listeners, close: one at a time
        self._pid = os.getpid()
        self._closed = False

    # Life

    def start(self, listen: Address | None) -> None:
        """Start the control thread and, given an address, accept links there. Once only.

        Args:
            listen: (host, port); port 0 lets the system choose; None for a client.

        Raises:
            OSError: The address cannot be bound; nothing was started.
        """
        with later(), self._changing:
            self._control.start()
            if self._context.heartbeat_seconds:
                self._control.post(self._begin_heartbeat)
            try:
                self._listeners.move(listen, "init")
            except BaseException:
                self._control.stop()
                raise

    def _begin_heartbeat(self) -> None:
        self._control.spawn(
            Heartbeat(self._context, self._lane_repair.start, self._lifecycle.lose).run()
        )

    @property
    def listen_address(self) -> Address | None:
        """Where links are accepted, as bound; None for a client."""
        return self._context.listen_address

    def relisten(self, listen: Address | None) -> None:
        """Accept links elsewhere, or no more; links that are up stay, lost ones are given up.

        Raises:
            OSError: The address cannot be bound; everything is as before.
        """
        operation = "switch_role"
        with later(), self._changing:
            self._listeners.move(listen, operation)
            self._control.run(self._reconnector.cancel_all(), operation)

    def open_listener(self, host: str, port: int) -> Address:
        """Accept links at one more address; return it as bound.

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
        """Raise LLM_FAILED where a call that waits would wait for its own thread, for ever."""
        if self._control.is_own_thread:
            raise self._control.own_thread(operation)

    def close(self) -> bool:
        """End every link; peers notice at once. Idempotent, bounded, never raises.

        When it returns, the delegate has disconnected every link, the port is free and the control
        thread has ended. Calls of other threads that are under way raise LLM_ENGINE_FINALIZED.

        Returns:
            Whether it has closed the table, and nothing of it runs any more.
        """
        with later(), self._changing:
            if self._closed or os.getpid() != self._pid:
                return False
            self._closed = True
            links: list[Link] = []
            with contextlib.suppress(LLMException):  # never started
                links = self._control.run(self._shut(), "finalize")
                self._control.run(self._lifecycle.wait_delivered(links), "finalize")
            self._control.stop()
        for link in links:  # here, because at interpreter exit no thread can be started
            try:
                self._context.delegate.disconnect(link.data)
            except Exception:
                logger.exception("taking down link %d", link.link_id)
        self._context.index.clear()
        if not (is_quiet := self._context.workers.wait_idle(_CLOSE_SECONDS)):
            logger.warning("finalize: a call that tears a link down has not come to an end")
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
        """Link to several clusters at once; one result each, in order.

        Failures are returned, not raised; see api.md 4.4 for the statuses.

        Raises:
            LLMException: LLM_PARAM_INVALID, before anything is done: a cluster without address.
        """
        operation = "link_clusters"
        for place, info in enumerate(clusters):
            if not info.remote_ip_info_list:
                raise fail(
                    LLMStatusCode.LLM_PARAM_INVALID,
                    operation,
                    f"remote_ip_info_list of clusters[{place}] is empty",
                    "append_remote_ip_info(ip, port) with the peer's listen address",
                    cluster_id=info.remote_cluster_id,
                )
        return self._control.run(self._link_all(clusters, timeout_ms), operation)

    async def _link_all(
        self, clusters: Sequence[LLMClusterInfo], timeout_ms: int
    ) -> list[LinkResult]:
        deadline, caller = Deadline(timeout_ms / 1000), object()
        return list(
            await asyncio.gather(
                *(self._requests.link(info, deadline, caller) for info in clusters)
            )
        )

    def unlink_clusters(
        self, clusters: Sequence[LLMClusterInfo], timeout_ms: int, force: bool = False
    ) -> list[LinkResult]:
        """Unlink several clusters at once, whoever holds the links; one result each, in order.

        When it returns, no transfer of those links touches memory any more, whatever the status.

        Args:
            clusters: Each found by its id alone, else by its remote addresses.
            timeout_ms: For the peers' answers.
            force: Take down this end without waiting for the peer's.

        Raises:
            LLMException: LLM_PARAM_INVALID, before anything is done: neither id nor address.
        """
        operation = "unlink_clusters"
        for place, info in enumerate(clusters):
            if info.remote_cluster_id is None and not info.remote_ip_info_list:
                raise fail(
                    LLMStatusCode.LLM_PARAM_INVALID,
                    operation,
                    f"clusters[{place}] has neither a remote_cluster_id nor a remote address",
                    "set one of them",
                )
        return self._control.run(self._unlink_all(clusters, timeout_ms, force=force), operation)

    async def _unlink_all(
        self, clusters: Sequence[LLMClusterInfo], timeout_ms: int, *, force: bool
    ) -> list[LinkResult]:
        deadline = Deadline(timeout_ms / 1000)
        return list(
            await asyncio.gather(
                *(self._requests.unlink(info, deadline, force=force) for info in clusters)
            )
        )

    def dial_peer(
        self,
        addresses: Sequence[Address],
        timeout_ms: float,
        *,
        expected_cluster_id: int | None = None,
        source_ip: str | None = None,
        domain: DomainHello | None = None,
    ) -> LinkResult:
        """Link to the instance at the first of several addresses that works.

        The result carries the link. With `domain` the link is held for it at both ends until
        `release`, a link that is up already is used, and one that is being set up or taken down is
        waited for.

        Args:
            addresses: Candidates, tried in order; the time is shared among those left.
            timeout_ms: For all of it.
            expected_cluster_id: Refuse any other peer.
            source_ip: Local ip to connect from.
            domain: What the accepting end's `on_domain_hello` has to agree to.
        """
        return self._control.run(
            self._requests.dial_any(
                addresses,
                Deadline(timeout_ms / 1000),
                expected_cluster_id,
                source_ip,
                domain,
            ),
            "link",
        )

    def hold(self, link: Link, holder: str) -> bool:
        """Hold a link at this end for one more holder; False when it is no longer up."""
        return self._control.run(self._hold(link, holder), "link")

    async def _hold(self, link: Link, holder: str) -> bool:
        if link.alive:
            link.holders |= {holder}
        return link.alive

    def release(self, link: Link, holder: str) -> None:
        """Drop a holder of a link at this end; without any left the link is taken down. Idempotent.

        Then, when it returns, no transfer of the link touches memory any more.
        """
        self._control.run(self._release(link, holder), "unlink")

    async def _release(self, link: Link, holder: str) -> None:
        link.holders -= {holder}
        if not link.holders:
            await self._lifecycle.unlink(link, Deadline(0), wait_for_peer=False)

    def heal(self, link_id: int) -> None:
        """Have lost lanes of a link opened anew, in the background. Never blocks; any thread."""
        self._control.post(self._lane_repair.start_by_id, link_id)

    def drop(self, link: Link, reason: str) -> None:
        """Give a link up as lost, because its peer does not do what it has to. Idempotent.

        When it returns, no transfer of the link touches memory any more.
        """
        self._control.run(self._lifecycle.drop(link, reason), "drop")

    def after(self, seconds: float, call: Callable[[], object]) -> None:
        """Have a worker call something in some time, if the table is open then. Never blocks."""
        self._control.post(self._wait_for, seconds, call)

    def _wait_for(self, seconds: float, call: Callable[[], object]) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(seconds, self._context.workers.submit, call)

    # Questions

    def get(self, cluster_id: int, operation: str = "get") -> Link:
        """Return the link to a cluster. Never blocks.

        Raises:
            LLMException: LLM_NOT_YET_LINK: there is none.
        """
        link = self._context.index.links.get(cluster_id)
        if link is not None:
            return link
        if self._closed:
            raise finalized(operation, cluster_id)
        problem, remedy = "there is no link to it", "link_clusters first"
        relink = self._context.index.relinks.get(cluster_id)
        if (dead := self._context.index.dead.get(cluster_id)) is not None:
            problem = f"its link was lost: {dead.reason}"
        if relink is not None:
            problem = (
                f"its link was lost ({relink.lost.reason}) and is being re-established: "
                f"{relink.attempts} dials so far, the last: {relink.failure}"
            )
            remedy = "retry soon; unlink_clusters gives it up"
        raise fail(
            LLMStatusCode.LLM_NOT_YET_LINK, operation, problem, remedy, cluster_id=cluster_id
        )

    def links(self) -> list[Link]:
        """Return the links that are up. Never blocks."""
        return list(self._context.index.links.values())

    def describe(self, cluster_id: int) -> dict[str, object]:
        """Return the facts of a link; LLM_NOT_YET_LINK when there is none."""
        facts = self.get(cluster_id, "describe_link").describe()
        return {**facts, "relinked": self._reconnector.num_reconnects(cluster_id)}

    def describe_relinks(self) -> list[dict[str, object]]:
        """Return the facts of lost links that are being made again. Never blocks."""
        return self._reconnector.describe()

    def check(self, cluster_id: int, timeout_ms: float) -> None:
        """Return when the peer's control plane answers on the link.

        Raises:
            LLMException: LLM_NOT_YET_LINK, LLM_TIMEOUT, or LLM_LINK_FAILED when the peer dies.
        """
        operation = "check_link_status"
        link = self.get(cluster_id, operation)
        self._control.run(self._ping(link, timeout_ms, operation), operation)

    async def _ping(self, link: Link, timeout_ms: float, operation: str) -> None:
        try:
            await Deadline(timeout_ms / 1000).limit(link.conversation.ping())
        except asyncio.TimeoutError:
            raise timed_out(operation, link, timeout_ms) from None
        except PeerClosedError as error:
            raise self._lost(operation, link, error) from error

    # Engine messages

    def notify(self, link: Link, body: bytes) -> None:
        """Send a message to the peer's `on_notify`; returns when it is on its way.

        Raises:
            LLMException: LLM_LINK_FAILED: the link is gone.
            ValueError: The body is larger than a message may be.
        """
        self._control.run(self._notify(link, body), "notify")

    async def _notify(self, link: Link, body: bytes) -> None:
        try:
            link.conversation.connection.send(Notify(body=body))
        except PeerClosedError as error:
            raise self._lost("notify", link, error) from error

    def request(
        self, link: Link, body: bytes, timeout_ms: float, operation: str = "request"
    ) -> bytes:
        """Send a message to the peer's `on_request` and return its answer.

        Raises:
            LLMException: LLM_TIMEOUT; LLM_LINK_FAILED: the link is or goes down; LLM_FAILED: the
                peer's hook raised, with its text.
            ValueError: The body is larger than a message may be.
        """
        return self._control.run(self._request(link, body, timeout_ms, operation), operation)

    async def _request(
        self, link: Link, body: bytes, timeout_ms: float, operation: str = "request"
    ) -> bytes:
        try:
            return await Deadline(timeout_ms / 1000).limit(link.conversation.ask(body))
        except asyncio.TimeoutError:
            raise timed_out(operation, link, timeout_ms) from None
        except PeerClosedError as error:
            raise self._lost(operation, link, error) from error
        except RemoteError as error:
            raise fail(
                LLMStatusCode.LLM_FAILED,
                operation,
                f"the peer could not do it: {error}",
                "see the peer's log",
                cluster_id=link.cluster_id,
            ) from error

    def request_all(
        self,
        links: Sequence[Link],
        body: bytes,
        deadline_ns: int,
        on_failure: Callable[[Link, LLMException], None],
    ) -> None:
        """Send one request over several links at the same time, and wait for all answers.

        Args:
            links: Where to.
            body: The same for all; the answers are dropped.
            deadline_ns: Moment on the clock of `time.monotonic_ns` by which to be done.
            on_failure: Called for each link without an answer, on this thread, one after the other.
        """
        timeout_ms = max(0.0, (deadline_ns - time.monotonic_ns()) / 1e6)
        outcomes = self._control.run(self._request_all(links, body, timeout_ms), "request")
        for link, outcome in zip(links, outcomes, strict=True):
            if outcome is not None:
                on_failure(link, outcome)

    async def _request_all(
        self, links: Sequence[Link], body: bytes, timeout_ms: float
    ) -> list[LLMException | None]:
        async def ask(link: Link) -> LLMException | None:
            try:
                await self._request(link, body, timeout_ms)
            except LLMException as error:
                return error
            return None

        return list(await asyncio.gather(*map(ask, links)))

    def _lost(self, operation: str, link: Link, error: PeerClosedError) -> LLMException:
        if self._closed:
            return finalized(operation, link.cluster_id)
        return fail(
            LLMStatusCode.LLM_LINK_FAILED,
            operation,
            f"the link to {printed(link.address)} ended ({link.reason or error})",
            "link_clusters again",
            cluster_id=link.cluster_id,
        )

    # Incoming

    async def _receive_link(self, visit: Visit) -> None:
        await receive_link(self._context, self._lifecycle, visit)

    async def _receive_lane(self, visit: Visit) -> None:
        await receive_lane(self._context, visit)
