"""End of a lease on local blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, final

__all__ = ["LeaseEnd", "LeaseEndReason"]

LeaseEndReason: TypeAlias = Literal["released", "expired", "peer lost", "cache gone"]


@final
@dataclass(frozen=True, slots=True)
class LeaseEnd:
    """A peer's lease on a local cache is over *(extension)*.

    Attributes:
        cluster_id: The peer that had it.
        cache_id: The local cache.
        blocks: Blocks (of a contiguous cache: slots) that were leased, ascending. Other leases may
            hold some of them still.
        reason: "released" by the peer, "expired", "peer lost" (its link ended in whatever way), or
            "cache gone" (unregistered, deallocated, consumed).
    """

    cluster_id: int
    cache_id: int
    blocks: tuple[int, ...]
    reason: LeaseEndReason
