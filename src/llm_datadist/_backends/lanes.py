"""A link's lanes: the authenticated TCP connections under every backend.

Each link has some, whatever moves its bulk data: lookups in the peer's directory, consumption of
keys and the doorbells of same-host pushes travel on them, served by the peer's native threads.

An operation that ends badly on a lane costs that lane. The layer above opens new ones; an operation
that finds none left waits for them.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from llm_datadist import _native
from llm_datadist._backends.outcomes import Code, Outcome, Ref

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_datadist._backends.node import Node
    from llm_datadist._backends.outcomes import Checksums
    from llm_datadist._backends.transfer import Transfer
    from llm_datadist._protocol.lane_auth import OpenLane

_LOSSES = frozenset({Code.TIMEOUT, Code.PEER_DEAD, Code.PROTOCOL, Code.CANCELLED, Code.NO_LANE})
"""Outcomes that may have cost a lane."""

_LONGEST_WAIT_S = 0.25


def _socket(lane: OpenLane) -> _native.LaneSocket:
    """Hand a lane over to the native core, which owns its socket from then on; OSError."""
    return _native.LaneSocket(lane.fd, *lane.keys, lane.clock_offset_ns)


class LinkLanes:
    """The lanes of one link, both directions.

    Args:
        node: The instance.
        link_id: Names the link in the native core; unique within the instance.
        client_lanes: On which the peer serves us; ownership passes.
        server_lanes: On which our native threads serve the peer; ownership passes.
        on_loss: Called when lanes on which we ask are missing, on the thread of the operation that
            finds it; it must not block, and has `add` called in the end. None when nobody opens new
            ones: then a link without lanes is as good as dead.

    Thread-safe.
    """

    def __init__(
        self,
        node: Node,
        link_id: int,
        client_lanes: Sequence[OpenLane],
        server_lanes: Sequence[OpenLane],
        on_loss: Callable[[], None] | None = None,
    ) -> None:
        self.node = node
        self.link_id = link_id
        self.answers = 0
        """Operations that went well; unlocked, so that it may miss a few."""
        self._num_client = len(client_lanes)
        self._num_server = len(server_lanes)
        self._on_loss = on_loss
        self._changed = threading.Condition()  # also: nothing is added once it is closed
        self._closed = False
        self._client = _native.Lanes(node.native, link_id)
        self._unserved = list(server_lanes)
        waiting = list(client_lanes)
        try:
            while waiting:
                self._client.add(_socket(waiting.pop(0)))
        except OSError:
            self._unserved += waiting
            self.close()
            raise

    def serve(self) -> None:
        """Start to serve the peer; what it asked before waits in its sockets until now.

        Raises:
            OSError: The instance has been closed, and the lanes are now, too.
        """
        try:
            while self._unserved:
                self.node.lane_server.serve(_socket(self._unserved.pop()), self.link_id)
        except OSError:
            self.close()
            raise

    @property
    def count(self) -> int:
        """Open lanes on which this side is the initiator."""
        return self._client.count()

    def missing(self) -> tuple[int, int]:
        """How many lanes fewer there are than at first: on which we ask, and which we serve.

        Negative when there are more. Lanes of either kind that the peer has closed do not count.
        """
        served = self.node.lane_server.link_lanes(self.link_id)
        return self._num_client - self._client.prune(), self._num_server - served

    def add(self, client_lanes: Sequence[OpenLane], server_lanes: Sequence[OpenLane]) -> None:
        """Put further lanes into use; ownership passes. Never blocks.

        A link or an instance that has been closed meanwhile closes them.
        """
        with self._changed:
            if self._closed:
                for lane in (*client_lanes, *server_lanes):
                    os.close(lane.fd)
                return
            for lane in client_lanes:
                with suppress(OSError):  # the instance is closed, and the socket now, too
                    self._client.add(_socket(lane))
            for lane in server_lanes:
                with suppress(OSError):
                    self.node.lane_server.serve(_socket(lane), self.link_id)
            self._changed.notify_all()

    def attach_host(self, host: _native.HostPeer) -> None:
        """Let pushes of the peer be carried out by own threads that read from the peer's memory."""
        self.node.lane_server.attach_host(self.link_id, host)

    def attach_landing(self, landing: _native.HostPeer) -> None:
        """Let own threads move what the peer's engine puts into landing slots of this process."""
        self.node.lane_server.attach_landing(self.link_id, landing)

    def read(self, transfer: Transfer) -> Outcome:
        return self._run(
            transfer.deadline_ns,
            self._client.read,
            transfer.local,
            transfer.remote,
            transfer.length,
            transfer.local_ref,
            transfer.cache_ref,
            transfer.key_ref,
            transfer.version,
        )

    def write(self, transfer: Transfer) -> Outcome:
        return self._run(
            transfer.deadline_ns,
            self._client.write,
            transfer.local,
            transfer.remote,
            transfer.length,
            transfer.local_ref,
            transfer.cache_ref,
            transfer.version,
        )

    def push(self, transfer: Transfer) -> Outcome:
        """As `write`, but the peer's threads fetch the bytes from our memory (same host)."""
        return self._run(
            transfer.deadline_ns,
            self._client.push,
            transfer.local,
            transfer.remote,
            transfer.length,
            transfer.local_ref,
            transfer.cache_ref,
            transfer.version,
        )

    def probe(self, transfer: Transfer) -> Outcome:
        """Have the peer's threads look whether they can read each page that a read names."""
        return self._run(
            transfer.deadline_ns,
            self._client.probe,
            transfer.remote,
            transfer.length,
            transfer.cache_ref,
            transfer.key_ref,
            transfer.version,
        )

    def ask_checksum(self, transfer: Transfer) -> Callable[[], tuple[Outcome, Checksums]]:
        """Have the peer's threads compute the CRC-32C of each range of its side of a transfer.

        Returns:
            A function that waits for the answer, to be called once and whatever happens. Until then
            a lane is taken: nothing that needs another one may be waited for in between.
        """
        asked = [self._checksum_question(transfer)]
        sums = b""

        def wait(_deadline_ns: int) -> tuple[int, int, int, int]:
            nonlocal sums
            question = asked.pop() if asked else self._checksum_question(transfer)
            outcome, sums = question.wait()
            return outcome

        def answer() -> tuple[Outcome, Checksums]:
            outcome = self._run(transfer.deadline_ns, wait)
            return outcome, np.frombuffer(sums, np.uint32)

        return answer

    def _checksum_question(self, transfer: Transfer) -> _native.ChecksumQuestion:
        return self._client.ask_checksum(
            transfer.remote,
            transfer.length,
            transfer.cache_ref,
            transfer.key_ref,
            0,
            transfer.deadline_ns,
        )

    def consume(self, key_ref: Ref, deadline_ns: int) -> Outcome:
        return self._run(deadline_ns, self._client.consume, *key_ref)

    def ping(self, deadline_ns: int) -> Outcome:
        return self._run(deadline_ns, self._client.ping)

    def version(self, deadline_ns: int) -> tuple[Outcome, int]:
        version = 0

        def ask(deadline_ns: int) -> tuple[int, int, int, int]:
            nonlocal version
            outcome, version = self._client.version(deadline_ns)
            return outcome

        return self._run(deadline_ns, ask), version

    def read_log(self, offset: int, size: int, deadline_ns: int) -> tuple[Outcome, bytes]:
        data = b""

        def ask(deadline_ns: int) -> tuple[int, int, int, int]:
            nonlocal data
            outcome, data = self._client.read_log(offset, size, deadline_ns)
            return outcome

        return self._run(deadline_ns, ask), data

    @staticmethod
    def ping_all(links: Sequence[LinkLanes], deadline_ns: int) -> list[bool]:
        """Ping the peers of many links at once; which of them answered, in order.

        Unlike `ping` it waits for no lane: without one that is free a link has not answered.
        """
        found = _native.ping_all([link._client for link in links], deadline_ns)
        for link, raw in zip(links, found, strict=True):
            lost = raw[0] in _LOSSES and link._client.count() < link._num_client
            if lost and link._on_loss is not None:
                link._on_loss()
        return [raw[0] == Code.OK for raw in found]

    def end(self) -> None:
        """Let nobody wait for further lanes, which will not come any more. Never blocks."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def close(self) -> None:
        """Close both directions; returns when no operation of this link touches memory."""
        self.end()
        while self._unserved:
            os.close(self._unserved.pop().fd)
        self._client.close()
        self.node.lane_server.drop_link(self.link_id)

    def _run(
        self,
        deadline_ns: int,
        operation: Callable[..., tuple[int, int, int, int]],
        *arguments: object,
    ) -> Outcome:
        """Carry out a native operation, which takes the deadline last, once there is a lane."""
        while True:
            try:
                outcome = Outcome(*operation(*arguments, deadline_ns))
            except BaseException:  # of a signal handler, which ended it as a timeout would have
                self._tell_loss()
                raise
            if outcome.code not in _LOSSES:
                self.answers += outcome.code == Code.OK
                return outcome
            if self._on_loss is None:
                return Outcome(Code.PEER_DEAD) if outcome.code == Code.NO_LANE else outcome
            self._tell_loss()
            if outcome.code != Code.NO_LANE:
                return outcome
            if self._closed:
                return Outcome(Code.CANCELLED)
            if time.monotonic_ns() >= deadline_ns:
                return Outcome(Code.TIMEOUT)
            self._wait_for_lane(deadline_ns)

    def _tell_loss(self) -> None:
        if self._on_loss is not None and self._client.count() < self._num_client:
            self._on_loss()

    def _wait_for_lane(self, deadline_ns: int) -> None:
        """Wait, a moment at most, until there are lanes again or never will be."""
        left_s = (deadline_ns - time.monotonic_ns()) / 1e9
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._client.count() > 0,
                min(max(left_s, 0.0), _LONGEST_WAIT_S),
            )
