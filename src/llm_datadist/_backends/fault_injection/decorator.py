"""Decorators of a backend and its channels that make transfers fail as a policy decides.

They keep the contract of `base.py`, except where the policy makes them lie (short with code OK,
corrupt): a transfer completes exactly once, in time, and moves nothing after that.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from llm_datadist._backends.base import Backend, Channel, Handle
from llm_datadist._backends.outcomes import Code, Outcome, as_outcome
from llm_datadist._devices.cpu import copy
from llm_datadist._plan import Plan
from llm_datadist._types.refs import NO_REF, Ref

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_datadist._backends.fault_injection.policy import Decision, FaultPolicy
    from llm_datadist._backends.lanes import LinkLanes
    from llm_datadist._backends.node import Node
    from llm_datadist._backends.transfer import PeerEndpoint, Region, Transfer, U64Array

    DropLink = Callable[[int], None]


class FaultChannel(Channel):
    """A channel whose transfers fail as a policy decides.

    Args:
        inner: The channel that moves the bytes.
        node: The instance's data plane.
        cluster_id: The peer.
        policy: Chooses the fault of each transfer.
        drop_link: Called with the peer's id to drop its link; None: only this channel is closed.
    """

    def __init__(
        self,
        inner: Channel,
        node: Node,
        cluster_id: int,
        policy: FaultPolicy,
        drop_link: DropLink | None = None,
    ) -> None:
        self.name = inner.name  # type: ignore[misc]  # the decorated one's
        self.inner = inner
        self.node = node
        self.policy = policy
        self.ended = threading.Event()
        self._cluster_id = cluster_id
        self._drop_link = drop_link
        self._dropped = False

    @property
    def innermost(self) -> Channel:
        return self.inner.innermost

    def post(self, transfer: Transfer) -> Handle:
        decision = self.policy.decide(write=transfer.write, cluster_id=self._cluster_id)
        if decision is not None and decision.action == "drop":
            self.drop()
        return FaultHandle(self, transfer, None if self._dropped else decision)

    def drop(self) -> None:
        """End the link, as if the peer had died."""
        self._dropped = True
        self.close()
        if self._drop_link is not None:
            self._drop_link(self._cluster_id)

    def begin(self, transfer: Transfer) -> Outcome | Handle:
        """Start a transfer on the decorated channel, unless the link was dropped."""
        return Outcome(Code.PEER_DEAD) if self._dropped else self.inner.post(transfer)

    def gathers(self, remote: U64Array) -> bool:
        return self.inner.gathers(remote)

    def update(self, metadata: bytes) -> None:
        self.inner.update(metadata)

    def forget(self, address: int, size: int) -> None:
        self.inner.forget(address, size)

    def describe(self) -> dict[str, object]:
        return {**self.inner.describe(), "faults": repr(self.policy)}

    def close(self) -> None:
        self.inner.close()
        self.ended.set()  # delayed transfers start now, and find the channel closed


class FaultHandle(Handle):
    """A transfer and its fault. Completes exactly once, however many threads wait for it."""

    def __init__(
        self, channel: FaultChannel, transfer: Transfer, decision: Decision | None
    ) -> None:
        self._channel = channel
        self._transfer = transfer
        self._decision = decision
        self._action = "" if decision is None else decision.action
        delay_ns = int(decision.delay_ms * 1e6) if decision and self._action == "delay" else 0
        self._due_ns = min(time.monotonic_ns() + delay_ns, transfer.deadline_ns) if delay_ns else 0
        self._begun: Handle | None = None
        self._outcome: Outcome | None = None
        self._lock = threading.Lock()

    def poll(self) -> Outcome | None:
        if self._due_ns > time.monotonic_ns() and not self._channel.ended.is_set():
            return None
        if not self._lock.acquire(blocking=False):
            return None  # another thread waits for it
        try:
            self._begin()
            if self._outcome is None and self._begun is not None:
                outcome = self._begun.poll()
                if outcome is not None:
                    self._complete(outcome)
            return self._outcome
        finally:
            self._lock.release()

    def wait(self) -> Outcome:
        left_s = (self._due_ns - time.monotonic_ns()) / 1e9 if self._due_ns else 0.0
        if left_s > 0:
            self._channel.ended.wait(left_s)
        with self._lock:
            self._begin()
            if self._outcome is None:
                assert self._begun is not None
                self._complete(self._begun.wait())
            assert self._outcome is not None
            return self._outcome

    def release(self) -> None:
        if self._begun is not None:
            self._begun.release()

    def _begin(self) -> None:
        if self._begun is not None or self._outcome is not None:
            return
        decision, transfer = self._decision, self._transfer
        if decision is not None and decision.action == "refuse":
            self._complete(Outcome(Code[decision.code]))
            return
        if decision is not None and decision.action == "short":
            transfer = _shortened(transfer, decision.place)
        begun = self._channel.begin(transfer)
        if isinstance(begun, Handle):
            self._begun = begun
        else:
            self._complete(begun)

    def _complete(self, outcome: Outcome) -> None:
        assert self._outcome is None, "a transfer completes once"
        decision, transfer = self._decision, self._transfer
        if decision is not None and outcome.code == Code.OK:
            if self._action in {"fail", "short"}:
                outcome = outcome._replace(code=Code[decision.code])
            elif self._action == "corrupt" and transfer.length.sum():
                flipped = _CorruptedByte(self._channel, transfer, decision.place).flip()
                outcome = outcome if flipped.code == Code.OK else flipped
        self._outcome = outcome
        self._channel.policy.completed()


def _shortened(transfer: Transfer, place: float) -> Transfer:
    """Return the first part of a transfer, cut before any of its bytes."""
    ends = np.cumsum(transfer.length)
    total = int(ends[-1]) if len(ends) else 0
    keep = int(place * total)
    count = int(np.searchsorted(ends, keep, side="right"))
    rest = keep - (int(ends[count - 1]) if count else 0)
    length = transfer.length[: count + bool(rest)].copy()
    if rest:
        length[-1] = rest
    kept = Plan.of(transfer.local[: len(length)], transfer.remote[: len(length)], length)
    return replace(transfer, plan=kept)


class _CorruptedByte:
    """Flips one byte at the destination of a transfer that has been moved.

    Only native copies that use its entry touch the caller's memory, so the cache may end meanwhile.
    """

    def __init__(self, channel: FaultChannel, transfer: Transfer, place: float) -> None:
        self._node = channel.node
        self._send = channel.inner.run
        self._transfer = transfer
        ends = np.cumsum(transfer.length)
        position = int(place * int(ends[-1]))
        self._index = index = int(np.searchsorted(ends, position, side="right"))
        offset = np.uint64(position - (int(ends[index - 1]) if index else 0))
        self._local = transfer.local[index : index + 1] + offset
        self._remote = transfer.remote[index : index + 1] + offset
        self._byte = np.zeros(1, np.uint8)
        self._scratch = np.array([self._byte.ctypes.data], np.uint64)

    def flip(self) -> Outcome:
        """Flip the byte; return why that failed, with the descriptor that it belongs to."""
        local_ref = self._transfer.local_ref
        outcome = self._copy(self._scratch, self._local, NO_REF, local_ref)
        codes = {Code.GONE: Code.LOCAL_GONE, Code.REMOTE_FAULT: Code.LOCAL_FAULT}
        outcome = outcome._replace(code=codes.get(Code(outcome.code), outcome.code))
        self._byte ^= 0xFF
        if outcome.code == Code.OK and self._transfer.write:
            outcome = self._send(
                replace(
                    self._transfer,
                    plan=Plan.of(self._scratch, self._remote, np.ones(1, np.uint64)),
                    local_ref=NO_REF,
                    version=0,
                )
            )
        elif outcome.code == Code.OK:
            outcome = self._copy(self._local, self._scratch, local_ref, NO_REF)
        return outcome._replace(descriptor=self._index)

    def _copy(self, dst: U64Array, src: U64Array, dst_ref: Ref, src_ref: Ref) -> Outcome:
        length = np.ones(1, np.uint64)
        return as_outcome(copy(self._node.native, dst, src, length, dst_ref, src_ref))


class FaultBackend(Backend):
    """A backend whose channels fail as a policy decides.

    Args:
        inner: The backend that moves the bytes; peers see its name.
        node: The instance's data plane.
        policy: Chooses the fault of each transfer.
        drop_link: See FaultChannel.
    """

    def __init__(
        self, inner: Backend, node: Node, policy: FaultPolicy, drop_link: DropLink | None = None
    ) -> None:
        self.name = inner.name  # type: ignore[misc]  # the decorated one's
        self.capabilities = inner.capabilities
        self.inner = inner
        self.policy = policy
        self._node = node
        self._drop_link = drop_link

    def register(self, region: Region) -> None:
        self.inner.register(region)

    def withdraw(self, region: Region) -> None:
        self.inner.withdraw(region)

    def fence(self, reason: str) -> None:
        self.inner.fence(reason)

    def deregister(self, region: Region) -> None:
        self.inner.deregister(region)

    def remapped(self, address: int, size: int) -> None:
        self.inner.remapped(address, size)

    def describe(self, link_id: int) -> bytes:
        return self.inner.describe(link_id)

    def connect(self, peer: PeerEndpoint, lanes: LinkLanes) -> FaultChannel:
        channel = self.inner.connect(peer, lanes)
        return FaultChannel(channel, self._node, peer.cluster_id, self.policy, self._drop_link)

    def close(self) -> None:
        self.inner.close()
