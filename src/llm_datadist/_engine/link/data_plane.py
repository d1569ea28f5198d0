"""The data plane of one link: its channels, its lanes, the peer's directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_datadist._backends.host import HostChannel
from llm_datadist._backends.outcomes import OK, Code, Outcome
from llm_datadist._engine.link.peer_fault_marks import PeerFaultMarks
from llm_datadist._registry import DirectoryReader

if TYPE_CHECKING:
    from llm_datadist._backends.base import Channel
    from llm_datadist._backends.lanes import LinkLanes
    from llm_datadist._backends.transfer import PeerEndpoint, Transfer, U64Array
    from llm_datadist._types.refs import Ref


CHECKSUM = "crc32c"
"""Feature of an endpoint: the instance's native threads can compute CRC-32C."""
GATHER = "gather"
"""Feature of an endpoint: they can gather short ranges for a peer on the same host."""

REQUEST_IDS = "request-ids"
"""Feature of an endpoint: the instance takes notices of transfers for requests."""


class LookupFailedError(Exception):
    """The peer's directory could not be read; `outcome` says why."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(Code(outcome.code).name)
        self.outcome = outcome


class _LaneDirectory:
    """The peer's directory, read over the lanes: answered by the peer's native threads."""

    def __init__(self, lanes: LinkLanes) -> None:
        self._lanes = lanes

    def version(self, deadline_ns: int) -> int:
        outcome, version = self._lanes.version(deadline_ns)
        if outcome.code != OK:
            raise LookupFailedError(outcome)
        return version

    def read_log(self, offset: int, size: int, deadline_ns: int) -> bytes:
        outcome, data = self._lanes.read_log(offset, size, deadline_ns)
        if outcome.code != OK:
            raise LookupFailedError(outcome)
        return data


class _HostDirectory:
    """The peer's directory in its published page, which this process has mapped."""

    def __init__(self, channel: HostChannel) -> None:
        self._channel = channel

    def version(self, _deadline_ns: int) -> int:
        version = self._channel.version()
        if version is None:
            raise _closed()
        return version

    def read_log(self, offset: int, size: int, _deadline_ns: int) -> bytes:
        data = self._channel.read_log(offset, size)
        if data is None:
            raise _closed()
        return data


def _closed() -> LookupFailedError:
    return LookupFailedError(Outcome(Code.CANCELLED))


class DataPlane:
    """Channels, lanes and directory of one link. Thread-safe.

    Args:
        peer: The peer's end.
        lanes: The link's lanes.
        channel: The backend's connection for bulk data.
        device_channel: The one for memory of accelerators, if there is one.
        why_device: Why it is not a better one, or there is none.
        reasons: Backends that were passed over, and why.
        own_link_ref: Local guard that is open as long as this end of the link.
        in_process: Whether the peer is in this process, so that addresses are comparable.
        checksum: How this side's transfers are checked: "crc32c", "off", or "off: " and why.
        gathers: Whether the peer's threads can gather short ranges.
        keep_directory: Read the directory again only when a key is unknown
            (enable_remote_cache_accessible).
        takes_ended: Whether the peer takes notices of ended transfers.

    Attributes:
        path: Name of the channel for host memory.
        device_path: Name of the channel for memory of accelerators, "none" without one.
        checked: Whether this side's transfers are checked end to end.
        published: Whether the peer's directory is mapped, so that every lookup is up to date. Over
            lanes the transfer itself carries the version (`required_version`), so that no round
            trip is spent on asking whether a lookup is current.
    """

    def __init__(
        self,
        peer: PeerEndpoint,
        lanes: LinkLanes,
        channel: Channel,
        reasons: dict[str, str],
        own_link_ref: Ref,
        *,
        device_channel: Channel | None = None,
        why_device: str = "",
        in_process: bool = False,
        checksum: str,
        gathers: bool = False,
        keep_directory: bool,
        takes_ended: bool = False,
    ) -> None:
        self.peer = peer
        self.lanes = lanes
        self.channel = channel
        self.device_channel = device_channel
        self.path: str = channel.name
        self.device_path: str = "none" if device_channel is None else device_channel.name
        self._why_device = why_device
        self.reasons = reasons
        self.own_link_ref = own_link_ref
        self.in_process = in_process
        self.marks: PeerFaultMarks = PeerFaultMarks()
        self.failures = self.mismatches = self.lost_notices = 0
        self.takes_ended = takes_ended
        self.checksum = checksum
        self.checked: bool = checksum == CHECKSUM
        self._reads = self._writes = 0
        self._read_bytes = self._written_bytes = 0
        self._gathers = gathers
        self._keep_directory = keep_directory
        innermost = channel.innermost
        self._host = innermost if isinstance(innermost, HostChannel) else None
        self.published: bool = self._host is not None
        source = _LaneDirectory(lanes) if self._host is None else _HostDirectory(self._host)
        self.directory: DirectoryReader = DirectoryReader(source, peer.cluster_id)

    @property
    def device_trouble(self) -> str:
        """Why accelerator memory cannot be moved; empty if it can."""
        return self._why_device if self.device_channel is None else self.device_channel.trouble

    def channels(self) -> list[Channel]:
        """The channels of the link, each once."""
        device_channel = self.device_channel
        if device_channel in (None, self.channel):
            return [self.channel]
        return [self.channel, device_channel]

    def channel_for(self, transfer: Transfer) -> Channel | None:
        """Return the channel that reaches the memory of a transfer."""
        return self.device_channel if transfer.on_device else self.channel

    def run(self, transfer: Transfer) -> Outcome:
        """Carry out a transfer over the channel that reaches its memory."""
        channel = self.device_channel if transfer.on_device else self.channel
        return Outcome(Code.NO_PATH) if channel is None else channel.run(transfer)

    def gathers(self, remote: U64Array) -> bool:
        """Whether a read of these addresses may have the peer's threads gather the bytes."""
        return self._gathers and self.lanes.count > 0 and self.channel.gathers(remote)

    def required_version(self) -> int:
        """The directory version that the peer must still have for a transfer to count; 0 = any."""
        if self._host is not None or self._keep_directory:
            return 0
        return self.directory.version

    def peer_end_is_open(self) -> bool:
        """Whether the peer's end of the link is open, as far as is known without a message."""
        if self._host is None:
            return self.lanes.count > 0
        index, value = self.peer.link_ref
        return self._host.guard(index) == value

    def count(self, num_bytes: int, write: bool) -> None:
        """Count a transfer; unlocked, so that totals may miss a few under contention."""
        if write:
            self._writes += 1
            self._written_bytes += num_bytes
        else:
            self._reads += 1
            self._read_bytes += num_bytes

    def describe(self) -> dict[str, object]:
        """Return the facts for describe_link."""
        return {
            "backend": {
                "host": self.channel.name,
                "device": (self.device_channel or self.channel).name,
            },
            "why": self.reasons or {self.channel.name: "the best path that both sides have"},
            "channel": self.channel.describe(),
            **self._describe_device_channel(),
            "lanes": self.lanes.count,
            "checksum": self.checksum,
            "counters": {
                "pulls": self._reads,
                "pulled_bytes": self._read_bytes,
                "pushes": self._writes,
                "pushed_bytes": self._written_bytes,
                "failures": self.failures,
                "checksum_mismatches": self.mismatches,
                "lost_request_notices": self.lost_notices,
            },
        }

    def _describe_device_channel(self) -> dict[str, object]:
        """Return the facts about memory of accelerators, where they differ from those above."""
        if self.device_channel is self.channel:
            return {}
        facts: dict[str, object] = {}
        if self._why_device:
            facts["why_device"] = self._why_device
        if self.device_channel is not None:
            facts["device_channel"] = self.device_channel.describe()
        return facts

    def close(self) -> None:
        """End everything; returns when no transfer of the link touches memory."""
        self.lanes.end()  # transfers must not wait for lanes while a channel waits for them
        for channel in self.channels():
            channel.close()
        self.lanes.close()
