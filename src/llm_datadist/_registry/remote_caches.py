"""The caches and keys that a peer's directory has, as its records are applied one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, final

import msgspec
import numpy as np

from llm_datadist._plan import Layout
from llm_datadist._plan.layouts import KvLayout, check_fit, from_bytes
from llm_datadist._registry.endings import Endings, absent
from llm_datadist._registry.layouts import cache_layout
from llm_datadist._registry.records import (
    DEALLOCATED,
    MAX_ALL_KEYS,
    MAX_CACHES,
    Added,
    CorruptDirectory,
    KeyName,
    KeyRemoved,
    Remapped,
    Removed,
    Unnamed,
)
from llm_datadist._types import BlocksCacheKey, CacheDesc, CacheKey, DataType, Placement
from llm_datadist._types.refs import NO_REF, Ref

if TYPE_CHECKING:
    from llm_datadist._registry.records import Record
    from llm_datadist._types import AnyKey

_KEY_FIELDS = ("req_id", "model_id", "prefix_id")
_NOT_CHECKED: Any = None
_NO_KEYS: Final[dict[Ref, KeyName]] = {}  # of all caches without keys, which get none later


class RemoteCache(msgspec.Struct, gc=False, eq=False):
    """A peer's cache.

    Its description is checked and its layout computed when a key first names it: most caches of a
    large directory are never used, and parsing it must not take time for them. Nor must Python's
    garbage collector, which does not look at these objects: they are part of no cycle.

    Attributes:
        record: What the peer has published about it.
        ref: Its entry there; part of every request for it. A remap changes the value.
        accessible: Whether peers may touch it.
        named: Whether its id can be used in keys.
        keys: Its CacheKeys by their guards.
        checked: Whether `check` has returned. Only then the following ones are right.
        on_device: Whether its memory is an accelerator's.
        desc: Its description.
        layout: Where its tensors lie in the peer's address space, in slots or blocks; without
            tensors when the cache is not accessible.
        kv_layout: What its blocks hold, which fits `desc`; None if the owner has not said so.
    """

    record: Added
    ref: Ref
    accessible: bool
    named: bool
    keys: dict[Ref, KeyName]
    checked: bool = False
    on_device: bool = False
    desc: CacheDesc = _NOT_CHECKED
    layout: Layout = _NOT_CHECKED
    kv_layout: KvLayout | None = None

    @classmethod
    def of(cls, record: Added) -> RemoteCache:
        """Return the cache of a record."""
        keys = {key.guard: key.name for key in record.keys} if record.keys else _NO_KEYS
        return cls(record, record.entry, record.accessible, record.named, keys)

    @property
    def cache_id(self) -> int:
        """Its id at the peer."""
        return self.record.cache_id

    @property
    def is_blocks(self) -> bool:
        """Whether it is a blocks cache."""
        return self.record.is_blocks

    @property
    def blocks_key(self) -> int | None:
        """The model_id of its BlocksCacheKey, if it has one."""
        return self.record.blocks_key

    def check(self) -> None:
        """Check the description that the peer published.

        Raises:
            CorruptDirectory: No cache can be like that.
        """
        self.desc, self.layout, self.kv_layout = _described(self.record)
        self.on_device = self.record.on_device
        self.checked = True

    def describe(self) -> dict[str, object]:
        """Return the facts for describe_remote_caches, as plain values. Raises as `check`."""
        self.check()
        desc = self.desc
        return {
            "cache_id": self.cache_id,
            "kind": "blocks" if self.is_blocks else "contiguous",
            "num_tensors": desc.num_tensors,
            "shape": list(desc.shape),
            "data_type": desc.data_type.name,
            "placement": desc.placement.name,
            "bytes": desc.num_tensors * desc.tensor_bytes,
            "on_device": self.on_device,
            "accessible": self.accessible,
            "named": self.named,
            "blocks_key": None if self.blocks_key is None else {"model_id": self.blocks_key},
            "keys": [dict(zip(_KEY_FIELDS, name, strict=True)) for name in self.keys.values()],
            "layout": None if self.kv_layout is None else str(self.kv_layout),
        }


class Resolved(msgspec.Struct, gc=False, frozen=True):
    """What a key names. Not seen by the garbage collector, as `RemoteCache`.

    Attributes:
        cache: The peer's cache.
        slot: The slot that the key names; 0 with a BlocksCacheKey.
        key_ref: Guard of a CacheKey, which the pull must find live; NO_REF with other keys.
    """

    cache: RemoteCache
    slot: int
    key_ref: Ref


@final
class RemoteTables:
    """Contents of one era of a log. Lookups need no lock.

    Args:
        endings: Why names are gone, also those of earlier eras: a new log does not have them.
    """

    def __init__(self, endings: Endings) -> None:
        self.endings = endings
        self.caches: dict[int, RemoteCache] = {}
        self.blocks_keys: dict[int, Resolved] = {}
        self.keys: dict[KeyName, Resolved] = {}
        self._num_keys = 0  # of caches, so that several of one name count

    def apply(self, record: Record) -> None:
        """Apply a record; CorruptDirectory when no owner writes it after the earlier ones."""
        if type(record) is Added:
            self._add(record)
            return
        cache = self.caches.get(record.cache_id)
        if cache is None:
            raise CorruptDirectory(f"a record concerns cache {record.cache_id}, there is none")
        if isinstance(record, Removed):
            self._remove(cache, record.reason)
        elif isinstance(record, KeyRemoved):
            self._remove_key(cache, record.guard, record.reason)
        elif isinstance(record, Unnamed):
            cache.named = False
            self.endings.add(("id", cache.cache_id), DEALLOCATED)
        elif isinstance(record, Remapped):
            cache.ref = (cache.ref[0], record.value)

    def _add(self, record: Added) -> None:
        if record.cache_id in self.caches:
            raise CorruptDirectory(f"cache {record.cache_id} is there twice")
        if len(self.caches) >= MAX_CACHES or self._num_keys + len(record.keys) > MAX_ALL_KEYS:
            raise CorruptDirectory(f"more than {MAX_CACHES} caches or {MAX_ALL_KEYS} keys")
        cache = RemoteCache.of(record)
        if len(cache.keys) != len(record.keys):  # the others would never be removed
            raise CorruptDirectory(f"cache {record.cache_id} has several keys of one guard")
        self._num_keys += len(cache.keys)
        self.caches[record.cache_id] = cache
        if record.blocks_key is not None:
            self.blocks_keys[record.blocks_key] = Resolved(cache, 0, NO_REF)
            if self.endings:
                self.endings.forget(("blocks", record.blocks_key))
        for key in record.keys:
            self.keys[key.name] = Resolved(cache, key.slot, key.guard)
            self.endings.forget(("key", key.name))

    def _remove(self, cache: RemoteCache, reason: int) -> None:
        del self.caches[cache.cache_id]
        self.endings.add(("id", cache.cache_id), reason)
        key = cache.blocks_key
        if key is not None and key in self.blocks_keys and self.blocks_keys[key].cache is cache:
            del self.blocks_keys[key]
            self.endings.add(("blocks", key), reason)
        for guard in list(cache.keys):
            self._remove_key(cache, guard, reason)

    def _remove_key(self, cache: RemoteCache, guard: Ref, reason: int) -> None:
        name = cache.keys.pop(guard, None)
        self._num_keys -= name is not None
        if name is not None and name in self.keys and self.keys[name].cache is cache:
            del self.keys[name]
            self.endings.add(("key", name), reason)

    def absent(self, key: AnyKey) -> tuple[str, str]:
        """Return problem and remedy where a key names nothing."""
        if isinstance(key, BlocksCacheKey):
            return absent(key, self.endings, self.blocks_keys)
        if isinstance(key, CacheKey):
            return absent(key, self.endings, self.keys)
        return absent(key, self.endings, [id_ for id_, c in list(self.caches.items()) if c.named])


def _described(record: Added) -> tuple[CacheDesc, Layout, KvLayout | None]:
    addrs = np.frombuffer(record.addrs, np.dtype("<u8")) if len(record.addrs) % 8 == 0 else None
    if addrs is None or len(addrs) != (record.num_tensors if record.accessible else 0):
        raise CorruptDirectory(f"cache {record.cache_id} has {len(record.addrs)} address bytes")
    try:
        desc = CacheDesc(
            record.num_tensors,
            record.shape,
            DataType(record.data_type),
            Placement(record.placement),
            record.batch_dim_index,
        )
        layout = cache_layout(desc, addrs.astype(np.uint64), is_blocks=record.is_blocks)
        kv_layout = from_bytes(record.kv_layout) if record.kv_layout else None
        if kv_layout is not None:
            if not record.is_blocks:
                raise ValueError("a layout of blocks for slots")
            check_fit(kv_layout, desc)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CorruptDirectory(f"cache {record.cache_id} makes no sense: {error}") from error
    return desc, layout, kv_layout
