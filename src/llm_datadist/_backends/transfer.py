"""Values that backends exchange with their caller: transfers, memory regions, peers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec

from llm_datadist._plan import Plan
from llm_datadist._types.refs import NO_REF, Ref

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from llm_datadist._types import Placement

U64Array: TypeAlias = "npt.NDArray[np.uint64]"
MemoryKind: TypeAlias = Literal["DRAM", "VRAM"]


@dataclass(frozen=True, slots=True)
class Region:
    """Memory of one cache as a backend registers it.

    Attributes:
        addresses: First byte of each tensor.
        sizes: Bytes of each tensor.
        placement: Where the caller says the memory is.
        device_id: Accelerator, for device memory.
        unit_bytes: Size of the slots or blocks that the tensors consist of; 0 for none.
        kind: NIXL's name for the memory: "VRAM" for accelerator memory, else "DRAM".
    """

    addresses: U64Array
    sizes: U64Array
    placement: Placement
    device_id: int = 0
    unit_bytes: int = 0
    kind: MemoryKind = "DRAM"


class Transfer(msgspec.Struct):
    """One read or write: descriptor arrays, and the guards that must hold for it to count.

    Attributes:
        write: True moves local to remote.
        plan: The descriptors; borrowed until release.
        local_ref: Entry of the local cache, so that unregistering it stops the transfer.
        cache_ref: The peer's cache, from the directory.
        key_ref: The peer's key guard, for keys that a pull consumes.
        version: Directory version that must still be current at the peer; 0 = no condition.
        deadline_ns: Absolute CLOCK_MONOTONIC nanoseconds.
        on_device: Whether either side is known to be accelerator memory.
        gather: Whether the peer's threads should gather the bytes of a read, because many short
            ranges are faster so; only if the channel's `gathers` allows it.
    """

    write: bool
    plan: Plan
    local_ref: Ref
    cache_ref: Ref
    deadline_ns: int
    key_ref: Ref = NO_REF
    version: int = 0
    on_device: bool = False
    gather: bool = False

    @property
    def local(self) -> U64Array:
        """Local addresses."""
        return self.plan.local

    @property
    def remote(self) -> U64Array:
        """Remote addresses."""
        return self.plan.remote

    @property
    def length(self) -> U64Array:
        """Lengths."""
        return self.plan.length

    @property
    def total_bytes(self) -> int:
        """Sum of the lengths."""
        return self.plan.total_bytes


@dataclass(frozen=True, slots=True)
class PeerEndpoint:
    """Data plane of a peer, from the link handshake.

    Attributes:
        cluster_id, incarnation: Identity of the peer.
        link_ref: The peer's guard of this link.
        page_proof: Proof that its published page shows beside that guard, if on this host.
        metadata: For each backend name, what the peer's `describe` returned.
    """

    cluster_id: int
    incarnation: int
    link_ref: Ref
    page_proof: bytes
    metadata: dict[str, bytes] = field(default_factory=dict)
