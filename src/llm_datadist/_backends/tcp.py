"""The TCP data path: lanes move the bytes between sockets and tensors.

Bytes of a GPU pass through pinned memory of the lane at that side; docs/design/gpu.md says how.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_datadist._backends.base import Backend, Capabilities, Channel, Finished, Unavailable

if TYPE_CHECKING:
    from llm_datadist._backends.base import Handle
    from llm_datadist._backends.lanes import LinkLanes
    from llm_datadist._backends.outcomes import Outcome
    from llm_datadist._backends.transfer import PeerEndpoint, Transfer


class TcpChannel(Channel):
    """Reads and writes over one link's lanes."""

    name = "tcp"
    reaches_devices = True

    def __init__(self, lanes: LinkLanes) -> None:
        self._lanes = lanes

    def run(self, transfer: Transfer) -> Outcome:
        return self._lanes.move(transfer)

    def post(self, transfer: Transfer) -> Handle:
        return Finished(self.run(transfer))

    def describe(self) -> dict[str, object]:
        return {"reads": "lanes", "pushes": "lanes"}

    def close(self) -> None:
        """Do nothing: the link closes its lanes, which ends running transfers."""


class TcpBackend(Backend):
    """See the module.

    Args:
        gpus: Whether caches of the instance may be in memory of a GPU.
    """

    name = "tcp"

    def __init__(self, *, gpus: bool = False) -> None:
        placements = {"host", "device"} if gpus else {"host"}
        self.capabilities = Capabilities(placements=frozenset(placements))

    def describe(self, _link_id: int) -> bytes:
        return b""

    def connect(self, peer: PeerEndpoint, lanes: LinkLanes) -> TcpChannel:
        if self.name not in peer.metadata:
            raise Unavailable("the peer does not offer it")
        return TcpChannel(lanes)
