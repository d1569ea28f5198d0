"""The contract of a data path between a pair of instances.

A backend belongs to one instance. Its life: `register` for every cache (before peers can name the
cache), `describe` when a link is made and again when `Capabilities.metadata_changes`, `connect`
once per link, `close` once. A channel belongs to one link and one backend. Transfers are posted to
a channel and waited for through a handle:

    handle = channel.post(transfer)
    outcome = handle.wait()          # or handle.poll() until it is not None
    handle.release()                 # always, exactly once

Rules that every backend must keep (`llm_datadist.testing.check_backend` checks them):

* READ moves `length[i]` bytes from `remote[i]` of the peer to `local[i]`; WRITE the other way.
* An outcome with code OK means applied: the bytes are in place, at the destination.
* A read counts only if every guard it names was live, at its value, after the last byte had moved.
* After an outcome other than OK no byte of the transfer lands any more, on either side. A backend
  whose engine cannot cancel makes `wait` last until that is true, or replaces the engine.
* `wait` returns by the transfer's deadline + 100 ms, whatever the peer does.
* `post`, `poll`, `wait` may be called from many threads at once, for different transfers.
* Nothing raises for a failed transfer: failures are outcomes. A bug raises.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from llm_datadist._protocol.texts import shown

if TYPE_CHECKING:
    from llm_datadist._backends.lanes import LinkLanes
    from llm_datadist._backends.outcomes import Checksums, Outcome
    from llm_datadist._backends.transfer import PeerEndpoint, Region, Transfer, U64Array


class Unavailable(Exception):
    """A backend cannot serve this link; not a failure.

    The text is one clause that says why. It may quote the peer, so it is passed through `shown`.
    """

    def __init__(self, text: str) -> None:
        super().__init__(shown(text))


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do.

    Attributes:
        reads, writes: Supported directions.
        metadata_changes: `describe` changes when memory is registered later; peers need updates.
        cancels: A posted transfer can be stopped before its deadline.
        withdraws: Peers read registered memory without a thread of this process that could stop
            them, so they must be asked to stop before it is deregistered.
        placements: Kinds of memory that it reaches: "host", "device".
    """

    reads: bool = True
    writes: bool = True
    metadata_changes: bool = False
    cancels: bool = True
    withdraws: bool = False
    placements: frozenset[str] = frozenset({"host"})


class Handle(ABC):
    """A posted transfer."""

    @abstractmethod
    def poll(self) -> Outcome | None:
        """Return the outcome, or None while the transfer runs. Never blocks."""

    @abstractmethod
    def wait(self) -> Outcome:
        """Wait for the outcome, GIL released; bounded by the transfer's deadline + 100 ms."""

    def release(self) -> None:  # noqa: B027 - most backends hold nothing
        """Release what the handle holds. Call once, after an outcome."""


class Finished(Handle):
    """Handle of a transfer that was completed inside `post`."""

    __slots__ = ("_outcome",)

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def poll(self) -> Outcome:
        return self._outcome

    def wait(self) -> Outcome:
        return self._outcome


class Channel(ABC):
    """A link's data path to its peer. Owned by the link; closed with it."""

    name: ClassVar[str]
    reaches_devices: ClassVar[bool] = False
    """Whether it moves accelerator memory."""
    reads_and_sums: ClassVar[bool] = False
    """Whether it has `read_and_sum`. A channel whose reads use lanes must not."""

    def gathers(self, remote: U64Array) -> bool:
        """Whether a read of these addresses may have the peer's threads gather the bytes."""
        del remote
        return False

    @property
    def trouble(self) -> str:
        """Reason for the most recent fallback to lanes, or "" if there was none."""
        return ""

    @property
    def innermost(self) -> Channel:
        """The channel that moves the bytes: `self`, or the one that it decorates."""
        return self

    @abstractmethod
    def post(self, transfer: Transfer) -> Handle:
        """Start (or complete) a transfer; its arrays are borrowed until the handle is released."""

    def run(self, transfer: Transfer) -> Outcome:
        """Post a transfer, wait for it and release it. Override if a handle costs too much."""
        handle = self.post(transfer)
        try:
            return handle.wait()
        finally:
            handle.release()

    def read_and_sum(self, transfer: Transfer) -> tuple[Outcome, Checksums]:
        """Carry out a read; return the outcome and the CRC-32C of each descriptor's bytes.

        Only if `reads_and_sums`.
        """
        raise NotImplementedError

    def update(self, metadata: bytes) -> None:  # noqa: B027 - most backends hold no metadata
        """Replace the peer's metadata (only with `Capabilities.metadata_changes`)."""

    def forget(self, address: int, size: int) -> None:  # noqa: B027 - most hold no mappings
        """Drop mappings of a range of the peer's memory, which the peer remaps or withdraws."""

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """Return what `describe_link` shows about the channel."""

    @abstractmethod
    def close(self) -> None:
        """End running transfers with CANCELLED; return when none touches memory. Idempotent."""


class Backend(ABC):
    """One data path of one instance."""

    name: ClassVar[str]
    capabilities: Capabilities

    def register(self, region: Region) -> None:  # noqa: B027 - guards and entries suffice for most
        """Make memory transferable. Called before the cache is published.

        Raises:
            Unavailable: It is accelerator memory, and the engine refuses it.
        """

    def withdraw(self, region: Region) -> None:  # noqa: B027
        """Hide memory from peers. Called before they are asked to stop reading it."""

    def deregister(self, region: Region) -> None:  # noqa: B027
        """Undo `register`. Called after the cache's entry is closed."""

    def remapped(self, address: int, size: int) -> None:  # noqa: B027 - most hold no mappings
        """Invalidate what peers know about a local range whose pages were replaced.

        Called before the caches over the range get new entries; peers then drop the range.
        """

    def fence(self, reason: str) -> None:  # noqa: B027
        """Return when no peer can reach memory of this process, because one does not answer."""

    @abstractmethod
    def describe(self, link_id: int) -> bytes:
        """Return what a peer needs to connect; sent in the link handshake after authentication.

        Args:
            link_id: Of the link that is being made. If it succeeds, `connect` gets its lanes.
        """

    @abstractmethod
    def connect(self, peer: PeerEndpoint, lanes: LinkLanes) -> Channel:
        """Make the channel of a new link.

        Raises:
            Unavailable: This pair cannot use this backend; `describe_link` shows the reason.
        """

    def connect_device(self, peer: PeerEndpoint, lanes: LinkLanes) -> Channel:
        """Make a channel for accelerator memory beside the channel that serves the link.

        Raises:
            Unavailable: Like `connect`.
        """
        del peer, lanes
        raise Unavailable("it does not reach memory of accelerators")

    def close(self) -> None:  # noqa: B027
        """Release everything; called after every channel is closed. Idempotent."""
