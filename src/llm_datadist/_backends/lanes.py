"""A link's lanes: the authenticated TCP connections under every backend.

Each link has lanes, whichever backend moves its bulk data: directory lookups, consumption of keys
and the doorbells of same-host pushes use them, and the peer's native threads serve them.

An operation that fails on a lane usually closes that lane. The layer above opens new lanes; an
operation that finds none waits for them.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np

from llm_datadist import _native
from llm_datadist._backends.cancellation import check_canceled
from llm_datadist._backends.outcomes import Code, Outcome, as_outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_datadist._backends.node import Node
    from llm_datadist._backends.outcomes import Checksums, RawOutcome
    from llm_datadist._backends.transfer import Transfer
    from llm_datadist._protocol.lane_auth import OpenLane
    from llm_datadist._types.refs import Ref

    _Operation: TypeAlias = Callable[..., RawOutcome]

_T = TypeVar("_T")

_LOSSES = frozenset({Code.TIMEOUT, Code.PEER_DEAD, Code.PROTOCOL, Code.CANCELLED, Code.NO_LANE})
"""Outcomes after which a lane may be closed."""

_LONGEST_WAIT_S = 0.05
"""For lanes, at a time: a canceled call ends within 100 ms."""

_NO_LANE: RawOutcome = (Code.NO_LANE, 0, -1, 0)


class _ClosedLanes:
    """Takes the place of a closed link's native lanes: there is never a lane.

    The native ones keep the memory of the instance's node, and a caller may keep an exception or a
    lease, which keep the link.
    """

    def count(self) -> int:
        return 0

    def wants_more(self) -> bool:
        return False

    def need(self, *_arguments: object) -> None:
        pass

    def prune(self) -> int:
        return 0

    def close(self) -> None:
        pass

    def add(self, _socket: _native.LaneSocket) -> None:
        raise OSError(errno.EBADF, "the link is closed")

    def operation(self, *_arguments: object) -> RawOutcome:
        return _NO_LANE

    read = gather = write = push = probe = consume = ping = operation

    def version(self, _deadline_ns: int) -> tuple[RawOutcome, int]:
        return _NO_LANE, 0

    def read_log(self, *_arguments: object) -> tuple[RawOutcome, bytes]:
        return _NO_LANE, b""

    def ask_checksum(self, *_arguments: object) -> _ClosedLanes:
        return self

    def wait(self) -> tuple[RawOutcome, bytes]:
        return _NO_LANE, b""


def _socket(lane: OpenLane) -> _native.LaneSocket:
    """Pass a lane's socket to the native core, which then owns it; raises OSError."""
    return _native.LaneSocket(lane.fd, *lane.keys, lane.clock_offset_ns)


class LinkLanes:
    """The lanes of one link, both directions.

    Args:
        node: The instance.
        link_id: Identifies the link in the native core; unique within the instance.
        client_lanes: Lanes on which the peer serves this instance; ownership passes.
        server_lanes: Lanes on which this instance serves the peer; ownership passes.
        on_loss: Called, on the thread of the operation that finds it, when client lanes are
            missing. It must not block, and must lead to a call of `add`. None if nothing opens new
            lanes: a link without lanes is then dead.
        most: Client lanes that the link may have, once operations could use them; 0 if it keeps
            those of the start.

    Thread-safe.
    """

    def __init__(
        self,
        node: Node,
        link_id: int,
        client_lanes: Sequence[OpenLane],
        server_lanes: Sequence[OpenLane],
        on_loss: Callable[[], None] | None = None,
        most: int = 0,
    ) -> None:
        self.node = node
        self.link_id = link_id
        self.host: _native.HostPeer | None = None
        """The reader of the peer's process, if it is on this host; its channel closes it."""
        self._num_client = len(client_lanes)
        self._num_server = len(server_lanes)
        self._most_client = self._num_client if on_loss is None else most
        self._on_loss = on_loss
        self._changing = threading.Lock()  # guards `_closed` and `_changed`
        self._changed: threading.Condition | None = None  # made when something waits for lanes
        self._closed = False
        self._client: _native.Lanes | _ClosedLanes = _native.Lanes(node.native, link_id)
        self._unserved = list(server_lanes)
        waiting = list(client_lanes)
        self._need()
        try:
            while waiting:
                self._client.add(_socket(waiting.pop(0)))
        except OSError:
            self._unserved += waiting
            self.close()
            raise

    def serve(self) -> None:
        """Start to serve the peer; its earlier requests have waited in the sockets.

        Raises:
            OSError: The instance is closed; all lanes of the link are closed, too.
        """
        try:
            while self._unserved:
                self.node.lane_server.serve(_socket(self._unserved.pop()), self.link_id)
        except OSError:
            self.close()
            raise

    @property
    def native(self) -> _native.Lanes | None:
        """The native lanes on which this side is the initiator; None once they are closed."""
        client = self._client
        return client if isinstance(client, _native.Lanes) else None

    @property
    def count(self) -> int:
        """Open lanes on which this side is the initiator."""
        return self._client.count()

    def missing(self) -> tuple[int, int]:
        """Return how many client and server lanes are missing.

        Negative when there are more than needed. Lanes that the peer has closed count as missing.
        """
        served = self.node.lane_server.link_lanes(self.link_id)
        return self._num_client - self._client.prune(), self._num_server - served

    def add(self, client_lanes: Sequence[OpenLane], server_lanes: Sequence[OpenLane]) -> None:
        """Start to use further lanes; ownership passes. Never blocks.

        Closes them if the link or the instance has been closed.
        """
        with self._changing:
            if self._closed:
                for lane in (*client_lanes, *server_lanes):
                    os.close(lane.fd)
                return
            for lane in client_lanes:
                with suppress(OSError):  # the instance is closed, and so is the socket
                    self._client.add(_socket(lane))
            for lane in server_lanes:
                with suppress(OSError):
                    self.node.lane_server.serve(_socket(lane), self.link_id)
            self._wake()

    def attach_host(self, host: _native.HostPeer) -> None:
        """Let this process's threads carry out the peer's pushes, reading the peer's memory."""
        self.host = host
        self.node.lane_server.attach_host(self.link_id, host)

    def attach_landing(self, landing: _native.HostPeer) -> None:
        """Let this process's threads move what the peer's engine writes into its landing slots."""
        self.node.lane_server.attach_landing(self.link_id, landing)

    def move(self, transfer: Transfer) -> Outcome:
        """Carry out a transfer of either direction: the lanes carry the bytes."""
        return self.write(transfer) if transfer.write else self.read(transfer)

    def read(self, transfer: Transfer) -> Outcome:
        """Read the remote ranges into the local ones."""
        return self._run(
            transfer.deadline_ns,
            self._client.read,
            transfer.plan.words,
            transfer.local_ref,
            transfer.cache_ref,
            transfer.key_ref,
            transfer.version,
        )

    def gather(self, transfer: Transfer, link_ref: Ref, deadline_ns: int) -> Outcome:
        """Have the peer's threads gather the remote ranges, and read them from there (same host).

        Unlike `read` it waits for no lane, and need not name a descriptor: what it could not do, a
        read of the peer's memory may.
        """
        host = self.host
        if host is None:
            return Outcome(Code.NO_LANE)
        check_canceled()
        try:
            outcome = as_outcome(
                self._client.gather(
                    host,
                    transfer.plan.words,
                    transfer.local_ref,
                    link_ref,
                    transfer.cache_ref,
                    transfer.key_ref,
                    transfer.version,
                    deadline_ns,
                )
            )
        except BaseException:  # raised by a signal handler
            self._report_loss()
            raise
        if outcome.code in _LOSSES:
            self._report_loss()
        return outcome

    def write(self, transfer: Transfer) -> Outcome:
        """Send the bytes of the local ranges; the peer's threads write the remote ranges."""
        return self._write(self._client.write, transfer)

    def push(self, transfer: Transfer) -> Outcome:
        """Like `write`, but the peer's threads read the local ranges themselves (same host)."""
        return self._write(self._client.push, transfer)

    def _write(self, operation: _Operation, transfer: Transfer) -> Outcome:
        return self._run(
            transfer.deadline_ns,
            operation,
            transfer.plan.words,
            transfer.local_ref,
            transfer.cache_ref,
            transfer.version,
        )

    def probe(self, transfer: Transfer) -> Outcome:
        """Have the peer's threads check that they can read each page of the remote ranges."""
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
        """Have the peer's threads compute the CRC-32C of each remote range.

        Returns:
            A function that waits for the answer. It must be called exactly once, also after an
            error. Until then a lane is in use: do not wait for an operation that needs another.
        """
        asked = [self._checksum_question(transfer)]
        sums = b""

        def wait(_deadline_ns: int) -> RawOutcome:
            nonlocal sums
            question = asked.pop() if asked else self._checksum_question(transfer)
            outcome, sums = question.wait()
            return outcome

        def answer() -> tuple[Outcome, Checksums]:
            try:
                outcome = self._run(transfer.deadline_ns, wait)
            finally:
                asked.clear()  # a canceled call does not come to wait for it
            return outcome, np.frombuffer(sums, np.uint32)

        return answer

    def _checksum_question(self, transfer: Transfer) -> _native.ChecksumQuestion | _ClosedLanes:
        return self._client.ask_checksum(
            transfer.remote,
            transfer.length,
            transfer.cache_ref,
            transfer.key_ref,
            0,
            transfer.deadline_ns,
        )

    def consume(self, key_ref: Ref, deadline_ns: int) -> Outcome:
        """Consume a key of the peer."""
        return self._run(deadline_ns, self._client.consume, *key_ref)

    def ping(self, deadline_ns: int) -> Outcome:
        """Exchange an empty message with the peer's threads."""
        return self._run(deadline_ns, self._client.ping)

    def version(self, deadline_ns: int) -> tuple[Outcome, int]:
        """Return the version of the peer's directory."""
        return self._ask(deadline_ns, 0, self._client.version)

    def read_log(self, offset: int, size: int, deadline_ns: int) -> tuple[Outcome, bytes]:
        """Return part of the log of the peer's directory."""
        return self._ask(deadline_ns, b"", self._client.read_log, offset, size)

    @staticmethod
    def ping_all(links: Sequence[LinkLanes], deadline_ns: int) -> list[bool]:
        """Ping the peers of many links at once; return for each whether it answered.

        Unlike `ping` it waits for no lane: a link without a free lane counts as unanswered.
        """
        clients = [(link, client) for link in links if (client := link.native) is not None]
        found = _native.ping_all([client for _, client in clients], deadline_ns)
        for (link, client), raw in zip(clients, found, strict=True):
            lost = raw[0] in _LOSSES and client.count() < link._num_client
            if lost and link._on_loss is not None:
                link._on_loss()
        answered = {
            link for (link, _), raw in zip(clients, found, strict=True) if raw[0] == Code.OK
        }
        return [link in answered for link in links]

    def end(self) -> None:
        """Wake all waiters; no lanes will be added after this. Never blocks."""
        with self._changing:
            self._closed = True
            self._wake()

    def close(self) -> None:
        """Close both directions; returns when no operation of this link touches memory."""
        self.host = None
        self.end()
        while self._unserved:
            os.close(self._unserved.pop().fd)
        self._client.close()
        self._client = _ClosedLanes()
        self.node.lane_server.drop_link(self.link_id)

    def _ask(
        self,
        deadline_ns: int,
        answer: _T,
        operation: Callable[..., tuple[RawOutcome, _T]],
        *arguments: object,
    ) -> tuple[Outcome, _T]:
        """Run a native operation that also returns a value; `answer` stands for none."""

        def ask(*arguments: object) -> RawOutcome:
            nonlocal answer
            outcome, answer = operation(*arguments)
            return outcome

        return self._run(deadline_ns, ask, *arguments), answer

    def _run(self, deadline_ns: int, operation: _Operation, *arguments: object) -> Outcome:
        """Run a native operation, which takes the deadline last, as soon as there is a lane."""
        while True:
            check_canceled()
            try:
                outcome = as_outcome(operation(*arguments, deadline_ns))
            except BaseException:  # raised by a signal handler, which ends it like a timeout
                self._report_loss()
                raise
            if outcome.code not in _LOSSES:
                if self._num_client < self._most_client and self._client.wants_more():
                    self._want_all()
                return outcome
            if self._on_loss is None:
                return Outcome(Code.PEER_DEAD) if outcome.code == Code.NO_LANE else outcome
            self._report_loss()
            if outcome.code != Code.NO_LANE:
                return outcome
            if self._closed:
                return Outcome(Code.CANCELLED)
            if time.monotonic_ns() >= deadline_ns:
                return Outcome(Code.TIMEOUT)
            self._wait_for_lane(deadline_ns)

    def _report_loss(self) -> None:
        if self._on_loss is not None and self._client.count() < self._num_client:
            self._on_loss()

    def _need(self) -> None:
        self._client.need(self._num_client, self._num_server, self.node.lane_server)

    def _want_all(self) -> None:
        self._num_client = self._most_client
        self._need()
        self._report_loss()

    def _wait_for_lane(self, deadline_ns: int) -> None:
        """Wait briefly until there are lanes again, or the link ends."""
        left_s = (deadline_ns - time.monotonic_ns()) / 1e9
        with self._changing:
            if self._changed is None:
                self._changed = threading.Condition(self._changing)
            self._changed.wait_for(
                lambda: self._closed or self._client.count() > 0,
                min(max(left_s, 0.0), _LONGEST_WAIT_S),
            )

    def _wake(self) -> None:
        """Wake all that wait for lanes. The lock is held."""
        if self._changed is not None:
            self._changed.notify_all()
