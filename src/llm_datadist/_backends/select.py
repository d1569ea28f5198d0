"""Which backends an instance has, and which of them a link uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_datadist._backends.base import Unavailable
from llm_datadist._backends.host import HostBackend
from llm_datadist._backends.tcp import TcpBackend

if TYPE_CHECKING:
    from llm_datadist._backends.base import Backend, Channel, PeerEndpoint
    from llm_datadist._backends.lanes import LinkLanes
    from llm_datadist._backends.node import Node
    from llm_datadist._devices.cpu import PoolMemory


@dataclass(frozen=True, slots=True)
class Selection:
    """The channel of a link and why it is this one.

    Attributes:
        channel: The channel.
        reasons: Per backend that was tried and passed over, why.
    """

    channel: Channel
    reasons: dict[str, str]


def make_backends(choice: str, node: Node, pools: tuple[PoolMemory, ...]) -> tuple[Backend, ...]:
    """The backends of an instance, best first.

    Args:
        choice: "auto", or the one backend that the caller insists on: "host", "tcp".
        node: The instance's data plane.
        pools: Pool memory that peers may map.

    Raises:
        Unavailable: The backend that was asked for does not exist here.
    """
    if choice == "tcp":
        return (TcpBackend(),)
    if choice == "host":
        return (HostBackend(node, pools),)
    if choice == "auto":
        return (HostBackend(node, pools), TcpBackend())
    raise Unavailable(f"backend {choice!r} is not part of this build; use auto, host or tcp")


def select_channel(
    backends: tuple[Backend, ...], peer: PeerEndpoint, lanes: LinkLanes
) -> Selection:
    """Connect the first backend that can serve this pair.

    Raises:
        Unavailable: None can; the text lists each one's reason.
    """
    reasons: dict[str, str] = {}
    for backend in backends:
        try:
            return Selection(backend.connect(peer, lanes), reasons)
        except Unavailable as error:
            reasons[backend.name] = str(error)
    raise Unavailable("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
