"""State that all parts of one instance's link table share. Loop thread only unless noted."""

from __future__ import annotations

import itertools
import logging
from collections import Counter, deque
from typing import TYPE_CHECKING, Final, final

from llm_datadist._control.relay import Relays
from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._links.state import LinkIndex
from llm_datadist._types.checks import INT32_MAX

if TYPE_CHECKING:
    from concurrent.futures import Future

    from llm_datadist._control.loop import ControlLoop
    from llm_datadist._control.sockets import Address
    from llm_datadist._links.delegate import Hooks, LinkDelegate
    from llm_datadist._links.lane_terms import LaneSink, OpenLanes
    from llm_datadist._links.link import LinkData, Peer
    from llm_datadist._options.settings import Config

__all__ = ["CLUSTERS", "Connecting", "LinkContext", "SetupError"]

logger = logging.getLogger("llm_datadist")

#: Holder of the links that `link_clusters` made.
CLUSTERS: Final = "clusters"
_MAX_ENDED: Final = 256
_MAX_UNLINKED: Final = 1024
_SILENCE_MS: Final = 20_000


class SetupError(Exception):
    """A link cannot be set up; carries the status and reason for the callers at both ends.

    Args:
        status: Of the dialing call.
        reason: Problem and remedy.
        answered: Whether a peer of this protocol answered; False if none was reached.
    """

    def __init__(self, status: LLMStatusCode, reason: str, *, answered: bool = True) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.answered = answered


@final
class LinkContext:
    """One instance's identity, options, control loop and links.

    Attributes:
        first_generation: Whether the instance is in first-generation mode.
        statuses: Statuses that its generation has in place of others.
        sessions: Where incoming lanes go, by the session number that they name.
        num_arriving: Authenticated incoming connections whose links are being set up.
        is_closed: Whether the instance was finalized; readable from any thread.
    """

    def __init__(
        self,
        cluster_id: int,
        config: Config,
        incarnation: int,
        delegate: LinkDelegate,
        hooks: Hooks,
        control: ControlLoop,
    ) -> None:
        self.cluster_id = cluster_id
        self.incarnation = incarnation
        self.secret = config.secret
        self.tls = config.tls
        self.allow_anonymous = config.allow_anonymous
        self.relays = None if config.tls is None else Relays(control.name, config.tls.dialing)
        self.num_lanes = config.lanes_per_link
        self.heartbeat_seconds = config.heartbeat_ms / 1000
        self.peer_timeout_seconds = config.peer_timeout_ms / 1000
        self.silence_ms = _silence_ms(config)
        self.auto_relink = config.auto_relink
        self.first_generation = not config.cache_manager
        self.statuses = config.statuses
        self.delegate = delegate
        self.hooks = hooks
        self.control = control
        self.workers = control.workers
        self.resolvers = control.resolvers
        self.index = LinkIndex()
        self.sessions: dict[bytes, LaneSink] = {}
        self.ended_sessions: deque[bytes] = deque(maxlen=_MAX_ENDED)
        self.unlinked_sessions: deque[bytes] = deque(maxlen=_MAX_UNLINKED)
        self.num_arriving = 0
        self.is_closed = False
        self.listen_address: Address | None = None
        self.link_ids = itertools.count(1)
        self.generations: Counter[int] = Counter()

    async def endpoint(self, link_id: int) -> bytes:
        """Return the delegate's endpoint for a link; SetupError when it raises."""
        try:
            return await self.workers.run(self.delegate.endpoint, link_id)
        except Exception as error:
            unexpected = not isinstance(error, LLMException)
            logger.warning("no endpoint for link %d: %s", link_id, error, exc_info=unexpected)
            reason = f"cluster {self.cluster_id} cannot offer its memory: {error}"
            raise SetupError(LLMStatusCode.LLM_LINK_FAILED, reason) from error


def _silence_ms(config: Config) -> int:
    """Return how long the kernel keeps a control connection without acknowledgments.

    That is longer than the timeout of the heartbeat, which also counts answers of the peer's native
    threads. The kernel's limit is for instances without a heartbeat.
    """
    longer = 2 * config.peer_timeout_ms if config.heartbeat_ms else 0
    return min(max(_SILENCE_MS, longer), INT32_MAX)


@final
class Connecting:
    """A call of the delegate's `connect`, started on a worker by the constructor.

    The delegate owns the lanes from then on.
    """

    def __init__(
        self, context: LinkContext, peer: Peer, link_id: int, endpoint: bytes, lanes: OpenLanes
    ) -> None:
        self._context = context
        self._peer = peer
        call = context.delegate.connect
        self._call = context.workers.submit(call, peer, link_id, endpoint, *lanes)

    async def data(self) -> LinkData:
        """Return the link data from the delegate; SetupError when it raises."""
        try:
            return await self._context.workers.outcome(self._call)
        except Exception as error:
            cluster_id = self._peer.cluster_id
            unexpected = not isinstance(error, LLMException)  # whose text is for the user
            logger.warning(
                "link to cluster %d refused: %s", cluster_id, str(error), exc_info=unexpected
            )
            reason = f"cluster {self._context.cluster_id} cannot use the link: {error}"
            raise SetupError(LLMStatusCode.LLM_LINK_FAILED, reason) from error

    def undo(self) -> None:
        """Disconnect the link data, as soon as there is any. Does not block."""
        self._call.add_done_callback(self._undo)

    def _undo(self, call: Future[LinkData]) -> None:
        if call.exception() is None:
            self._context.workers.submit(self._context.delegate.disconnect, call.result())
