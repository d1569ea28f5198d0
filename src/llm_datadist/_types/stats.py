"""Snapshot of an instance: what `LLMDataDist.stats` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CacheStats",
    "FaultStats",
    "Histogram",
    "InstanceStats",
    "LeaseStats",
    "LinkStats",
    "PoolStats",
    "TransferStats",
]


@final
@dataclass(frozen=True)
class Histogram:
    """Durations in buckets *(extension)*.

    Attributes:
        bounds: Upper bound of each bucket but the last one in seconds, inclusive, ascending; the
            same in every histogram.
        counts: Durations in each bucket; the last one has those above every bound.
        sum: Seconds of all durations together.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        """Number of durations."""
        return sum(self.counts)


@final
@dataclass(frozen=True)
class TransferStats:
    """Transfers that this instance has made by one operation over one path *(extension)*.

    A call is one transfer; but `pull_resharded` and `push_resharded` make one for each rank, and
    `transfer_cache_async` one for each layer and destination. Calls that are refused before their
    link is looked up are not counted: arguments of a wrong type, or a local cache that is gone.

    Attributes:
        operation: Name of the call.
        path: Data path of the link for the memory: "host", "cuda", "tcp" or "nixl"; "none" if there
            was no link.
        completed: Transfers that succeeded.
        num_bytes: Bytes that they moved.
        errors: Transfers that failed, by the name of the LLMStatusCode that was raised.
        seconds: Durations of those that succeeded, from the call to its return.
    """

    operation: str
    path: str
    completed: int
    num_bytes: int
    errors: Mapping[str, int]
    seconds: Histogram


@final
@dataclass(frozen=True)
class LinkStats:
    """Links of an instance *(extension)*.

    Attributes:
        connecting: Links that are being set up with a peer that has answered.
        linked: Links that are up, as far as this end knows.
        unlinking: Links that either end is unlinking.
        lost: Links whose peer died, was silent or was cut off, and that are being taken down.
        reconnecting: Lost links that are being re-established.
        relinked: Links that were re-established since `init`.
    """

    connecting: int
    linked: int
    unlinking: int
    lost: int
    reconnecting: int
    relinked: int


@final
@dataclass(frozen=True)
class PoolStats:
    """Use of one memory pool *(extension)*.

    Attributes:
        name: "device", "host", or "shared" for the pool of first-generation mode.
        size_bytes: Whole pages of the pool.
        used_bytes: Bytes that are allocated.
        free_bytes: Bytes that are free.
        largest_free_bytes: Longest run of free bytes.
        num_allocations: Tensors that are allocated.
    """

    name: str
    size_bytes: int
    used_bytes: int
    free_bytes: int
    largest_free_bytes: int
    num_allocations: int


@final
@dataclass(frozen=True)
class CacheStats:
    """Live caches of an instance *(extension)*.

    Attributes:
        registered: Caches over memory of the caller.
        registered_bytes: Bytes of their tensors.
        allocated: Caches from a pool.
        allocated_bytes: Bytes of their tensors.
        registered_addrs: Addresses that count for `max_registered_addrs`.
        cache_keys: Live CacheKeys.
        blocks_cache_keys: Live BlocksCacheKeys.
        directory_bytes: Length of the directory that peers read.
    """

    registered: int
    registered_bytes: int
    allocated: int
    allocated_bytes: int
    registered_addrs: int
    cache_keys: int
    blocks_cache_keys: int
    directory_bytes: int


@final
@dataclass(frozen=True)
class LeaseStats:
    """Leases that hold now *(extension)*.

    Attributes:
        held: Leases of this instance on blocks of peers.
        lent: Leases of peers on blocks of this instance.
        lent_blocks: Blocks of the leases in `lent`; a block counts once for each of them.
    """

    held: int
    lent: int
    lent_blocks: int


@final
@dataclass(frozen=True)
class FaultStats:
    """Local memory at fault *(extension)*.

    Attributes:
        marked: Blocks and slots that have a fault mark now, of all tensors.
        marked_bytes: Bytes of them.
        remaps: Successful calls of `remap_registered_memory` since `init`.
    """

    marked: int
    marked_bytes: int
    remaps: int


@final
@dataclass(frozen=True)
class InstanceStats:
    """Snapshot of one instance *(extension)*; `dataclasses.asdict` makes it ready for JSON.

    Counts of what has happened start at 0 in `init` and only grow. The parts are read one after the
    other, so that a transfer that ends meanwhile may be in one and not in another.

    Attributes:
        cluster_id: The instance.
        transfers: One entry for each operation and path that has been used, sorted.
        links: Its links.
        pools: Its memory pools.
        caches: Its caches.
        leases: Leases on either side.
        faults: Its memory at fault.
    """

    cluster_id: int
    transfers: tuple[TransferStats, ...]
    links: LinkStats
    pools: tuple[PoolStats, ...]
    caches: CacheStats
    leases: LeaseStats
    faults: FaultStats
