"""What the two ends of a link agree about its lanes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, final

from llm_datadist._protocol.handshake import Side
from llm_datadist._protocol.lane_auth import LaneKeys, OpenLane

if TYPE_CHECKING:
    import socket

    from llm_datadist._control.relay import CarriedLane, Relays

__all__ = [
    "LanePlace",
    "LaneRoute",
    "LaneSink",
    "LaneTerms",
    "OpenLanes",
    "ProvenLane",
    "all_places",
]

#: (lanes on which we ask, lanes on which the peer asks)
OpenLanes: TypeAlias = tuple[list[OpenLane], list[OpenLane]]
#: (which end serves, index)
LanePlace: TypeAlias = tuple[Side, int]
#: (family, socket address, source ip or None)
LaneRoute: TypeAlias = tuple[int, tuple[Any, ...], str | None]


@final
@dataclass(frozen=True, slots=True)
class ProvenLane:
    """A connection that has proved itself.

    Attributes:
        sock: What becomes the native core's.
        keys: Of the tags of its frames.
        clock_offset_ns: See OpenLane.
    """

    sock: socket.socket | CarriedLane
    keys: LaneKeys = field(repr=False)
    clock_offset_ns: int

    def detach(self) -> OpenLane:
        """Return it for the delegate, who owns it then."""
        return OpenLane(self.sock.detach(), self.keys, self.clock_offset_ns)

    def close(self) -> None:
        """Close it, instead of `detach`. Idempotent."""
        self.sock.close()


@final
@dataclass(frozen=True, slots=True)
class LaneTerms:
    """What the two ends of a link agreed about its lanes; good for as long as it lives.

    Attributes:
        num_lanes: In each direction.
        session: Number that the lanes name.
        key: What they have to prove.
        route: How the dialing end reaches the other; None on the accepting end.
        relays: What encrypts their bytes; None when nothing does.
    """

    num_lanes: int
    session: bytes
    key: bytes = field(repr=False)
    route: LaneRoute | None = None
    relays: Relays | None = None


class LaneSink(Protocol):
    """Where lanes of one session go, on the accepting end."""

    @property
    def key(self) -> bytes:
        """What they have to prove."""

    @property
    def relays(self) -> Relays | None:
        """What encrypts their bytes."""

    def fill(self, place: LanePlace, lane: ProvenLane) -> None:
        """Take a proven lane; an exception refuses it."""


def all_places(num_lanes: int) -> list[LanePlace]:
    """Return the places of the lanes of a new link."""
    return [(side, index) for side in Side for index in range(num_lanes)]
