"""Values that backends exchange with their caller: transfers, memory regions, peers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from llm_datadist._types.refs import NO_REF, Ref

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from llm_datadist._types import Placement

    U64Array = npt.NDArray[np.uint64]


MemoryKind: TypeAlias = Literal["DRAM", "VRAM"]


@dataclass(frozen=True, slots=True)
class Region:
    """Memory of one cache as a backend registers it.

    Attributes:
        addresses: First byte of each tensor.
        sizes: Bytes of each tensor.
        placement: Where the caller says the memory is.
        device_id: Accelerator, for device memory.
        unit_bytes: Of the slots or blocks that the tensors divide into; 0 for none.
        kind: What an engine calls the memory: "DRAM", or "VRAM" where addresses are an
            accelerator's.
    """

    addresses: U64Array
    sizes: U64Array
    placement: Placement
    device_id: int = 0
    unit_bytes: int = 0
    kind: MemoryKind = "DRAM"


@dataclass(slots=True)
class Transfer:
    """One operation: descriptor arrays and what has to hold for it to count.

    Attributes:
        write: True moves local to remote.
        local, remote, length: C-contiguous uint64 arrays of one length; borrowed until release.
        local_ref: Entry of the own cache, so that unregistering it stops the transfer.
        cache_ref: The peer's cache as the directory had it.
        key_ref: The peer's key guard, for keys that a pull consumes.
        version: Directory version that must still be current at the peer; 0 = no condition.
        deadline_ns: Absolute CLOCK_MONOTONIC nanoseconds.
        on_device: Whether memory of an accelerator is on either side: lanes cannot move that.
    """

    write: bool
    local: U64Array
    remote: U64Array
    length: U64Array
    local_ref: Ref
    cache_ref: Ref
    deadline_ns: int
    key_ref: Ref = NO_REF
    version: int = 0
    on_device: bool = False

    @property
    def total_bytes(self) -> int:
        """How much is moved."""
        length = self.length
        return int(length.item() if len(length) == 1 else length.sum())


@dataclass(frozen=True, slots=True)
class PeerEndpoint:
    """What a peer told about its data plane when the link was made.

    Attributes:
        cluster_id, incarnation: Who it is.
        link_ref: Guard at the peer that lives as long as its end of this link.
        page_proof: What its published page shows beside that guard, if it runs on this host.
        metadata: Per backend name, what the peer's `describe` returned.
    """

    cluster_id: int
    incarnation: int
    link_ref: Ref
    page_proof: bytes
    metadata: dict[str, bytes] = field(default_factory=dict)
