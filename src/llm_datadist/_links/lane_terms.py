"""Terms that the two ends of a link agree for its lanes, and the types of lanes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, final

from llm_datadist._protocol.handshake import Side
from llm_datadist._protocol.lane_auth import LaneKeys, OpenLane

if TYPE_CHECKING:
    import socket

    from llm_datadist._control.relay import CarriedLane, Relays

__all__ = [
    "FIRST_LANES",
    "LanePlace",
    "LaneRoute",
    "LaneSink",
    "LaneTerms",
    "OpenLanes",
    "AuthenticatedLane",
    "all_places",
]

#: (lanes on which this end sends requests, lanes on which the peer does)
OpenLanes: TypeAlias = tuple[list[OpenLane], list[OpenLane]]
#: (end that serves requests, index)
LanePlace: TypeAlias = tuple[Side, int]
#: In each direction of a new link, at most. Most links never need more, and each lane costs two
#: descriptors; an end that could use more opens them later. The second lane is for operations that
#: follow one that has cost its lane.
FIRST_LANES: Final = 2
#: (family, socket address, source ip or None)
LaneRoute: TypeAlias = tuple[int, tuple[Any, ...], str | None]


@final
@dataclass(frozen=True, slots=True)
class AuthenticatedLane:
    """A lane connection that has been authenticated.

    Attributes:
        sock: The socket for the native core.
        keys: Keys of the tags of its frames.
        clock_offset_ns: See OpenLane.
    """

    sock: socket.socket | CarriedLane
    keys: LaneKeys = field(repr=False)
    clock_offset_ns: int

    def detach(self) -> OpenLane:
        """Return the lane for the delegate, which owns it from here on."""
        return OpenLane(self.sock.detach(), self.keys, self.clock_offset_ns)

    def close(self) -> None:
        """Close it, instead of `detach`. Idempotent."""
        self.sock.close()


@final
@dataclass(frozen=True, slots=True)
class LaneTerms:
    """Terms of the lanes of one link, unchanged while it is up.

    Attributes:
        most_lanes: In each direction, once an end could use that many.
        session: Session number that the lanes name.
        key: Key that they must prove.
        route: How the dialing end reaches the other; None on the accepting end.
        relays: Encrypt their bytes; None for lanes without TLS.
    """

    most_lanes: int
    session: bytes
    key: bytes = field(repr=False)
    route: LaneRoute | None = None
    relays: Relays | None = None


class LaneSink(Protocol):
    """Receiver of the lanes of one session, on the accepting end."""

    @property
    def key(self) -> bytes:
        """Key that the lanes must prove."""

    @property
    def relays(self) -> Relays | None:
        """Encrypt the lanes' bytes; None for lanes without TLS."""

    def add(self, place: LanePlace, lane: AuthenticatedLane) -> None:
        """Take an authenticated lane; an exception refuses it."""


def all_places(num_lanes: int) -> list[LanePlace]:
    """Return the places of the lanes of a new link."""
    return [(side, index) for side in Side for index in range(num_lanes)]
