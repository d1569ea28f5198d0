"""The contract of a data path between a pair of instances.

A backend belongs to one instance. Its life: `register` for every cache (before the cache can be
named by anybody), `describe` when a link is made and again when `Capabilities.metadata_changes`,
`connect` once per link, `close` once. A channel belongs to one link and one backend. Transfers are
posted to a channel and waited for through a handle:

    handle = channel.post(transfer)
    outcome = handle.wait()          # or handle.poll() until it is not None
    handle.release()                 # always, exactly once

Rules that every backend keeps (`llm_datadist.testing.check_backend` is their executable form):

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
    from llm_datadist._backends.transfer import PeerEndpoint, Region, Transfer


class Unavailable(Exception):
    """A backend cannot serve this link; the text says why, in one clause. Not a failure.

    The text may quote the peer: it is `shown`.
    """

    def __init__(self, text: str) -> None:
        super().__init__(shown(text))


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do.

    Attributes:
        reads, writes: Directions.
        metadata_changes: `describe` changes when memory is registered later; peers need updates.
        cancels: A posted transfer can be stopped before its deadline.
        withdraws: Peers read registered memory without the help of a thread that could stop them:
            they have to be told before it goes.
        placements: Kinds of memory it reaches, "host" and "device".
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
        """Give back what the handle holds. Call once, after an outcome."""


class Finished(Handle):
    """The handle of a transfer that was carried out inside `post`."""

    __slots__ = ("_outcome",)

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def poll(self) -> Outcome:
        return self._outcome

    def wait(self) -> Outcome:
        return self._outcome


class Channel(ABC):
    """One link's data path to one peer. Owned by the link; closed with it."""

    name: ClassVar[str]
    reaches_devices: ClassVar[bool] = False
    """Whether it moves memory of accelerators."""
    reads_and_sums: ClassVar[bool] = False
    """Whether a read can take checksums as the bytes arrive; one that needs lanes must not."""

    @property
    def trouble(self) -> str:
        """Why it has last not done what it is for; empty while there is nothing to say."""
        return ""

    @property
    def innermost(self) -> Channel:
        """The channel that moves the bytes: this one, unless it decorates another."""
        return self

    @abstractmethod
    def post(self, transfer: Transfer) -> Handle:
        """Start a transfer (or carry it out); its arrays stay borrowed until the release."""

    def run(self, transfer: Transfer) -> Outcome:
        """Post, wait, release: what the engine calls. Override when a handle costs too much."""
        handle = self.post(transfer)
        try:
            return handle.wait()
        finally:
            handle.release()

    def read_and_sum(self, transfer: Transfer) -> tuple[Outcome, Checksums]:
        """Carry out a read, and tell the CRC-32C of what has arrived by each descriptor.

        Only with `reads_and_sums`.
        """
        raise NotImplementedError

    def update(self, metadata: bytes) -> None:  # noqa: B027 - most backends hold no metadata
        """Take the peer's new `describe` (only with Capabilities.metadata_changes)."""

    def forget(self, address: int, size: int) -> None:  # noqa: B027 - most hold no mappings
        """Drop what is held of that range of the peer's memory: it was remapped there."""

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """Facts for describe_link."""

    @abstractmethod
    def close(self) -> None:
        """End running transfers (they get CANCELLED) and return when none touches memory any more.

        Idempotent.
        """


class Backend(ABC):
    """One data path of one instance."""

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities]

    def register(self, region: Region) -> None:  # noqa: B027 - guards and entries suffice for most
        """Make memory transferable. Called before the cache is published.

        Raises:
            Unavailable: It is an accelerator's, and the engine does not take it.
        """

    def withdraw(self, region: Region) -> None:  # noqa: B027
        """Peers are about to be asked to stop: from now on they must not find the memory."""

    def deregister(self, region: Region) -> None:  # noqa: B027
        """Undo `register`. Called after the cache's entry was closed."""

    def remapped(self, address: int, size: int) -> None:  # noqa: B027 - most hold no mappings
        """Own memory has other pages now: what peers were told of the old ones must not serve.

        Called before the caches over the range get new entries; peers forget the range after that.
        """

    def fence(self, reason: str) -> None:  # noqa: B027
        """A peer does not say that it has stopped: return when it cannot reach memory any more."""

    @abstractmethod
    def describe(self, link_id: int) -> bytes:
        """What a peer needs to connect; carried by the link handshake, after authentication.

        Args:
            link_id: Of the link that is being made; `connect` gets lanes with the same one, if it
                comes about.
        """

    @abstractmethod
    def connect(self, peer: PeerEndpoint, lanes: LinkLanes) -> Channel:
        """Make the channel of a new link.

        Raises:
            Unavailable: This pair cannot use this backend; the reason is shown by describe_link.
        """

    def connect_device(self, peer: PeerEndpoint, lanes: LinkLanes) -> Channel:
        """Make a channel for memory of accelerators beside another one that serves the link.

        Raises:
            Unavailable: As `connect`.
        """
        del peer, lanes
        raise Unavailable("it does not reach memory of accelerators")

    def close(self) -> None:  # noqa: B027
        """Release everything; called after every channel is closed. Idempotent."""
