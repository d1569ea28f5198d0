"""A link's lanes: the authenticated TCP connections under every backend.

Each link has some, whatever moves its bulk data: lookups in the peer's directory, consumption of
keys and the doorbells of same-host pushes travel on them, served by the peer's native threads.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from llm_datadist import _native
from llm_datadist._backends.outcomes import Outcome, Ref

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_datadist._backends.base import Transfer
    from llm_datadist._backends.node import Node


class LinkLanes:
    """The lanes of one link, both directions.

    Args:
        node: The instance.
        link_id: Names the link in the native core; unique within the instance.
        client_fds: Connected sockets on which the peer serves us; ownership passes.
        server_fds: Connected sockets on which our native threads serve the peer; ownership passes.

    Thread-safe.
    """

    def __init__(
        self, node: Node, link_id: int, client_fds: Iterable[int], server_fds: Iterable[int]
    ) -> None:
        self.node = node
        self.link_id = link_id
        self._client = _native.Lanes(node.native, link_id)
        for fd in client_fds:
            self._client.add(fd)
        self._server_fds = list(server_fds)

    def serve(self) -> None:
        """Start to serve the peer; what it asked before waits in its sockets until now."""
        while self._server_fds:
            self.node.lane_server.serve(self._server_fds.pop(), self.link_id)

    @property
    def count(self) -> int:
        """Open lanes on which this side is the initiator."""
        return self._client.count()

    def attach_host(self, host: _native.HostPeer) -> None:
        """Let pushes of the peer be carried out by own threads that read from the peer's memory."""
        self.node.lane_server.attach_host(self.link_id, host)

    def read(self, transfer: Transfer) -> Outcome:
        return Outcome(
            *self._client.read(
                transfer.local,
                transfer.remote,
                transfer.length,
                transfer.local_ref,
                transfer.cache_ref,
                transfer.key_ref,
                transfer.version,
                transfer.deadline_ns,
            )
        )

    def write(self, transfer: Transfer) -> Outcome:
        return Outcome(
            *self._client.write(
                transfer.local,
                transfer.remote,
                transfer.length,
                transfer.local_ref,
                transfer.cache_ref,
                transfer.version,
                transfer.deadline_ns,
            )
        )

    def push(self, transfer: Transfer) -> Outcome:
        """As `write`, but the peer's threads fetch the bytes from our memory (same host)."""
        return Outcome(
            *self._client.push(
                transfer.local,
                transfer.remote,
                transfer.length,
                transfer.local_ref,
                transfer.cache_ref,
                transfer.version,
                transfer.deadline_ns,
            )
        )

    def consume(self, key_ref: Ref, deadline_ns: int) -> Outcome:
        return Outcome(*self._client.consume(key_ref[0], key_ref[1], deadline_ns))

    def ping(self, deadline_ns: int) -> Outcome:
        return Outcome(*self._client.ping(deadline_ns))

    def version(self, deadline_ns: int) -> tuple[Outcome, int]:
        outcome, version = self._client.version(deadline_ns)
        return Outcome(*outcome), version

    def read_log(self, offset: int, size: int, deadline_ns: int) -> tuple[Outcome, bytes]:
        outcome, data = self._client.read_log(offset, size, deadline_ns)
        return Outcome(*outcome), data

    def close(self) -> None:
        """Close both directions; returns when no operation of this link touches memory."""
        while self._server_fds:
            os.close(self._server_fds.pop())
        self._client.close()
        self.node.lane_server.drop_link(self.link_id)
