"""Landing slots that this instance grants its peers, two for each link, to write into."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final, NamedTuple, final

from llm_datadist import _native
from llm_datadist._backends.nixl.agent import NixlError
from llm_datadist._backends.nixl.landing import Landing
from llm_datadist._backends.nixl.metadata import GRANTED_SLOTS
from llm_datadist._logs import later

if TYPE_CHECKING:
    from llm_datadist._backends.nixl.agent import Agent
    from llm_datadist._backends.node import Node

logger = logging.getLogger("llm_datadist")

_MAX_OFFERS: Final = 64
"""Links in the making that have slots; with more, the oldest loses its own."""


class _Grant(NamedTuple):
    """Slots for the writes of one peer, and a reader that is bound to them."""

    landing: Landing
    reader: _native.HostPeer


@final
class Grants:
    """See the module. Thread-safe.

    Args:
        node: The instance.
        agent: Gets the slots registered.
    """

    def __init__(self, node: Node, agent: Agent) -> None:
        self._node = node
        self._agent = agent
        self._lock = threading.Lock()
        self._offered: dict[int, _Grant] = {}
        self._in_use: dict[int, _Grant] = {}
        self._retired: list[Landing] = []

    def offer(self, link_id: int) -> tuple[int, bytes]:
        """Make slots for a link that is being made; return their address and the engine's metadata.

        Raises:
            OSError, NixlError: The memory cannot be allocated, or registered.
        """
        grant = self._make()
        try:
            self._agent.register(grant.landing.rows, "DRAM")
            metadata = self._agent.region_metadata(grant.landing.rows, "DRAM")
        except NixlError:
            with later(), self._lock:
                self._retire(grant)
            raise
        with later(), self._lock:
            stale = [] if len(self._offered) < _MAX_OFFERS else [next(iter(self._offered))]
            for old in (*stale, link_id):
                self._retire(self._offered.pop(old, None))
            self._offered[link_id] = grant
        return grant.landing.address, metadata

    def use(self, link_id: int) -> _native.HostPeer | None:
        """Return the reader of a link's slots, now that the link is made; None if it has none."""
        with later(), self._lock:
            grant = self._offered.pop(link_id, None)
            if grant is None:
                return None
            self._in_use[link_id] = grant
            return grant.reader

    def revoke(self, link_id: int) -> None:
        """Take a link's slots back."""
        with later(), self._lock:
            self._retire(self._in_use.pop(link_id, None))

    def close(self) -> None:
        """Unmap all slots; only after the agent is closed. Idempotent."""
        with later(), self._lock:
            for grant in (*self._offered.values(), *self._in_use.values()):
                grant.reader.close()
                self._retired.append(grant.landing)
            self._offered.clear()
            self._in_use.clear()
            for landing in self._retired:
                landing.close()
            self._retired.clear()

    def _make(self) -> _Grant:
        """Make slots, and a reader of this very process that may read nothing else.

        The reader uses system calls, not a mapping: a process that is frozen and thawed has
        finished a call, but not a copy, and must not finish it when its peer has given up.
        """
        landing = Landing(self._node, GRANTED_SLOTS)
        try:
            reader = _native.HostPeer.own(self._node.native)
            reader.restrict_to(landing.address, landing.size)
        except OSError:
            landing.close()
            raise
        return _Grant(landing, reader)

    def _retire(self, grant: _Grant | None) -> None:
        """End a grant. Its slots stay mapped until the engine ends: a late write may meet them."""
        if grant is None:
            return
        grant.reader.close()
        try:
            self._agent.deregister(grant.landing.rows, "DRAM")
        except NixlError as error:
            logger.debug("NIXL keeps landing slots registered: %s", error)
        grant.landing.free_pages()
        self._retired.append(grant.landing)
