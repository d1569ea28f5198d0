"""Record of a live cache of this instance."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, final

import numpy as np

from llm_datadist._plan.layouts import to_bytes
from llm_datadist._registry.layouts import cache_layout
from llm_datadist._registry.records import DEALLOCATED, UNREGISTERED, Added, KeyRecord
from llm_datadist._types.refs import NO_REF

if TYPE_CHECKING:
    from llm_datadist._plan import Layout
    from llm_datadist._plan.layout import Piece
    from llm_datadist._plan.layouts import KvLayout
    from llm_datadist._registry.records import KeyName
    from llm_datadist._types import Cache, CacheDesc
    from llm_datadist._types.refs import Ref


@final
class LocalCache:
    """The registry's record of one cache. Changed by the registry only.

    Attributes:
        cache: The object that the caller holds.
        cache_id: Its id; NO_CACHE_ID for a cache that is registered nowhere.
        desc: Its description (`cache.cache_desc` makes a copy at every access).
        layout: Its tensors, divided into slots or blocks.
        kv_layout: What its blocks hold; None if the caller has not said so.
        is_blocks: Whether it is a blocks cache.
        accessible: Whether peers may touch it.
        device: Ordinal of the accelerator that its memory is of; None for host memory.
        allocated: Whether its memory is from a pool of this instance.
        ref: Its entry at the native node, `local_ref` of transfers; a remap changes the value.
        named: Whether its id holds it; deallocate_cache ends that.
        blocks_key: model_id of the BlocksCacheKey that names it now.
        keys: Its CacheKeys that are live, with their slots and guards.
        faulted: Slots or blocks that a transfer could not access, until a remap.
        memory: Objects that keep its memory alive until it is final; None if the caller does.
        transition: Held while the entry is closed or reopened.
        closed: Set when its memory is final: no transfer touches it any more.
    """

    __slots__ = (
        "accessible",
        "allocated",
        "blocks_key",
        "cache",
        "cache_id",
        "closed",
        "desc",
        "device",
        "faulted",
        "is_blocks",
        "keys",
        "kv_layout",
        "layout",
        "memory",
        "named",
        "ref",
        "transition",
    )

    def __init__(
        self,
        cache: Cache,
        desc: CacheDesc,
        layout: Layout,
        *,
        accessible: bool,
        allocated: bool,
        device: int | None = None,
        kv_layout: KvLayout | None = None,
        memory: object = None,
    ) -> None:
        self.cache: Cache = cache
        self.cache_id: int = cache.cache_id
        self.desc: CacheDesc = desc
        self.layout: Layout = layout
        self.kv_layout: KvLayout | None = kv_layout
        self.is_blocks: bool = cache.is_blocks_cache
        self.accessible: bool = accessible
        self.allocated: bool = allocated
        self.device: int | None = device
        self.ref: Ref = NO_REF
        self.named: bool = True
        self.blocks_key: int | None = None
        self.keys: dict[KeyName, tuple[int, Ref]] = {}
        self.faulted: tuple[Piece, ...] = ()
        self.memory: object = memory
        self.transition: threading.Lock = threading.Lock()
        self.closed: threading.Event = threading.Event()

    @classmethod
    def unregistered(cls, cache: Cache) -> LocalCache:
        """Return a record of a cache that `Cache.create_cpu_cache` made, without an entry."""
        desc = cache.cache_desc
        layout = cache_layout(desc, cache.tensor_addrs, is_blocks=cache.is_blocks_cache)
        return cls(cache, desc, layout, accessible=False, allocated=False)

    @property
    def is_held(self) -> bool:
        """Whether its id or a key holds it."""
        return self.named or (self.allocated and bool(self.keys))

    @property
    def end_reason(self) -> int:
        """Why it is gone when it is, for peers (`records`)."""
        return DEALLOCATED if self.allocated else UNREGISTERED

    def record(self, blocks_key: int | None) -> Added:
        """Return the directory record; it has addresses only if peers may touch them."""
        addrs = self.layout.addrs.astype(np.dtype("<u8")).tobytes() if self.accessible else b""
        return Added(
            cache_id=self.cache_id,
            entry=self.ref,
            is_blocks=self.is_blocks,
            num_tensors=self.desc.num_tensors,
            shape=tuple(self.desc.shape),
            data_type=self.desc.data_type.value,
            placement=self.desc.placement.value,
            batch_dim_index=self.desc.batch_dim_index,
            addrs=addrs,
            accessible=self.accessible,
            blocks_key=blocks_key,
            keys=tuple(KeyRecord(*name, *key) for name, key in self.keys.items()),
            on_device=self.device is not None,
            kv_layout=b"" if self.kv_layout is None else to_bytes(self.kv_layout),
        )

    def overlaps(self, addr: int, size: int) -> bool:
        """Return whether a tensor shares a byte with `[addr, addr + size)`."""
        tensor_bytes = self.layout.tensor_bytes
        return any(
            start < addr + size and addr < start + tensor_bytes for start in self.layout.starts
        )
