"""What all parts of one instance's link table share. Loop thread only unless said otherwise."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections import Counter
from typing import TYPE_CHECKING, Final, final

from llm_datadist._errors import LLMStatusCode
from llm_datadist._links.ledger import Ledger

if TYPE_CHECKING:
    from llm_datadist._control.loop import ControlLoop
    from llm_datadist._control.sockets import Address
    from llm_datadist._links.delegate import Hooks, LinkData, LinkDelegate, Peer
    from llm_datadist._links.lanes import LaneSession
    from llm_datadist._options import Config

__all__ = ["CLUSTERS", "Connecting", "LinkContext", "SetupError"]

logger = logging.getLogger("llm_datadist")

#: Holder of links that `link_clusters` made.
CLUSTERS: Final = "clusters"


class SetupError(Exception):
    """A link cannot be set up: status and reason for the caller, here or at the peer.

    Args:
        status: For the caller.
        reason: Its text.
        answered: Whether a peer of this protocol said so, as opposed to nobody being reached.
    """

    def __init__(self, status: LLMStatusCode, reason: str, *, answered: bool = True) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.answered = answered


@final
class LinkContext:
    """One instance's identity, options, loop and ledger."""

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
        self.num_lanes = config.lanes_per_link
        self.delegate = delegate
        self.hooks = hooks
        self.control = control
        self.workers = control.workers
        self.ledger = Ledger()
        self.sessions: dict[bytes, LaneSession] = {}
        self.listen_address: Address | None = None
        self.link_ids = itertools.count(1)
        self.generations: Counter[int] = Counter()

    async def connect(
        self,
        peer: Peer,
        link_id: int,
        endpoint: bytes,
        fds: tuple[list[int], list[int]],
    ) -> LinkData:
        """Have the delegate connect a link.

        Cancelled meanwhile, what comes of it is undone.

        Raises:
            SetupError: The delegate refuses.
        """
        connecting = Connecting(self.delegate, peer, link_id, endpoint, fds)
        try:
            return await self.workers.run(connecting.call)
        except Exception as error:
            logger.warning("link to cluster %d refused here", peer.cluster_id, exc_info=True)
            reason = f"cluster {self.cluster_id} cannot use the link: {error}"
            raise SetupError(LLMStatusCode.LLM_LINK_FAILED, reason) from error
        except BaseException:
            self.workers.submit(connecting.abandon)
            raise


@final
class Connecting:
    """A call of the delegate's connect that may be given up while it runs. Thread-safe."""

    def __init__(
        self,
        delegate: LinkDelegate,
        peer: Peer,
        link_id: int,
        endpoint: bytes,
        fds: tuple[list[int], list[int]],
    ) -> None:
        self._delegate = delegate
        self._peer = peer
        self._link_id = link_id
        self._endpoint = endpoint
        self._fds = fds
        self._calling = threading.Lock()
        self._called = self._abandoned = False
        self._data: list[LinkData] = []

    def call(self) -> LinkData:
        """Call connect, unless given up."""
        with self._calling:
            if self._abandoned:
                raise RuntimeError("given up")
            self._called = True
            data = self._delegate.connect(self._peer, self._link_id, self._endpoint, *self._fds)
            self._data.append(data)
            return data

    def abandon(self) -> None:
        """Undo it, after the call has ended when it has begun. Blocks."""
        with self._calling:
            self._abandoned = True
            if not self._called:
                for fd in (*self._fds[0], *self._fds[1]):
                    os.close(fd)
            while self._data:
                self._delegate.disconnect(self._data.pop())
