"""Tables of the live caches of an instance, and of the keys that hold and name them.

Every method runs under the registry's lock and is quick; each keeps the published directory in step
with the tables.
"""

from __future__ import annotations

import logging
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, final

import numpy as np

from llm_datadist._errors import LLMStatusCode, fail, invalid
from llm_datadist._registry.endings import Endings, absent
from llm_datadist._registry.local_cache import LocalCache
from llm_datadist._registry.records import key_name
from llm_datadist._registry.writer import DirectoryFull, DirectoryWriter
from llm_datadist._types import BlocksCacheKey, Cache, CacheKey, Placement
from llm_datadist._types.keys import UNUSED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llm_datadist._plan import Layout
    from llm_datadist._plan.layouts import KvLayout
    from llm_datadist._registry.interfaces import Node
    from llm_datadist._registry.records import KeyName
    from llm_datadist._types import CacheDesc, CacheKeyByIdAndIndex
    from llm_datadist._types.refs import Ref

_log = logging.getLogger("llm_datadist")


Named: TypeAlias = tuple[LocalCache, int]


class Wanted(NamedTuple):
    """A cache that is about to be published.

    Attributes:
        operation: API call.
        desc, addrs, is_blocks: Description, addresses, kind.
        accessible: Whether peers may touch it.
        allocated: Whether its memory is from a pool.
        slots: Its CacheKeys and the slots that they name.
        blocks_key: model_id of its BlocksCacheKey.
        kv_layout: What its blocks hold, if the caller has said so; fits `desc`.
        memory: What owns its memory; None if the caller keeps it alive.
    """

    operation: str
    desc: CacheDesc
    is_blocks: bool
    addrs: tuple[int, ...] = ()
    accessible: bool = True
    allocated: bool = False
    slots: Mapping[KeyName, int] = MappingProxyType({})
    blocks_key: int | None = None
    kv_layout: KvLayout | None = None
    memory: object = None


@final
class Tables:
    """The caches of one instance; not thread-safe.

    Args:
        node: The instance's native node.
        max_registered_addrs: Limit of the sum of addresses over all registered caches.
        log_capacity: Bytes that the directory log can hold.

    Attributes:
        token: Identity of the instance, carried by its caches.
        caches: Caches that are live, by id.
        closing: Caches that have left the tables and whose memory is not final yet, by id.
        keys: Caches by CacheKey.
        key_guards: What each key guard stands for.
        blocks_keys: Caches by BlocksCacheKey.
        registered_addrs: Sum of addresses over all registered caches.
        endings: Why names are gone.
        directory: Publishes changes to peers.
    """

    def __init__(self, node: Node, *, max_registered_addrs: int, log_capacity: int) -> None:
        self._node = node
        self._max_registered_addrs = max_registered_addrs
        self.token = object()
        self.caches: dict[int, LocalCache] = {}
        self.closing: dict[int, LocalCache] = {}
        self.keys: dict[KeyName, LocalCache] = {}
        self.key_guards: dict[Ref, tuple[LocalCache, KeyName]] = {}
        self.blocks_keys: dict[int, LocalCache] = {}
        self.registered_addrs = 0
        self.endings = Endings()
        self.directory = DirectoryWriter(node, log_capacity)
        self._last_id = 0

    def add(self, wanted: Wanted, layout: Layout, device: int | None) -> LocalCache:
        """Open the guards of a cache, publish it, add it: all or nothing.

        Raises:
            LLMException: LLM_PARAM_INVALID: too many addresses, or a key that is bound;
                LLM_OUT_OF_MEMORY: no guards or no directory space left.
        """
        self._check_room(wanted)
        cache = Cache(
            self._last_id + 1,
            wanted.desc,
            wanted.addrs,
            is_blocks_cache=wanted.is_blocks,
            owner=self.token,
            is_host_memory=device is None,
        )
        local = LocalCache(
            cache,
            cache.cache_desc,
            layout,
            accessible=wanted.accessible,
            allocated=wanted.allocated,
            device=device,
            kv_layout=wanted.kv_layout,
            memory=wanted.memory,
        )
        try:
            sizes = np.full(layout.num_tensors, layout.tensor_bytes, np.uint64)
            local.ref = self._node.open_entry(layout.addrs, sizes, local.accessible, device)
            for name, slot in wanted.slots.items():
                local.keys[name] = (slot, self._node.open_key())
            self.directory.add(local.record(wanted.blocks_key))
        except BaseException as error:
            for _, guard in local.keys.values():
                self._node.close_key(*guard)
            if local.ref[1]:
                self._node.close_entry(*local.ref)
            if isinstance(error, (MemoryError, ValueError, DirectoryFull)):
                raise fail(
                    LLMStatusCode.LLM_OUT_OF_MEMORY,
                    wanted.operation,
                    f"there is no room for another cache in the directory ({error})",
                    "unregister caches that are not used any more",
                ) from error
            raise
        self._file(local, wanted.blocks_key)
        return local

    def named(self, key: BlocksCacheKey | CacheKey | CacheKeyByIdAndIndex) -> Named | None:
        """Return the live cache that a key of this instance names, and its slot."""
        if isinstance(key, BlocksCacheKey):
            local = self.blocks_keys.get(key.model_id)
            return None if local is None else (local, 0)
        if isinstance(key, CacheKey):
            name = key_name(key)
            local = self.keys.get(name)
            return None if local is None else (local, local.keys[name][0])
        local = self.caches.get(key.cache_id)
        return None if local is None or not local.named else (local, key.batch_index)

    def drop_key(self, local: LocalCache, name: KeyName, reason: int) -> bool:
        """Unbind a key; return whether the cache was detached, as nothing holds it now.

        Args:
            local: The cache of the key.
            name: The key.
            reason: Why, for peers (`records`).
        """
        _, guard = local.keys.pop(name)
        del self.keys[name], self.key_guards[guard]
        self._node.close_key(*guard)  # also frees the guard of a key that a peer consumed
        self.directory.remove_key(local.cache_id, guard, reason)
        self.endings.add(("key", name), reason)
        if local.is_held:
            return False
        self.detach(local)
        return True

    def detach(self, local: LocalCache) -> None:
        """Take a cache out of the tables; it must be finished outside the lock."""
        del self.caches[local.cache_id]
        self.closing[local.cache_id] = local
        if not local.allocated:
            self.registered_addrs -= local.layout.num_tensors
        self.endings.add(("id", local.cache_id), local.end_reason)
        for name, (_, guard) in local.keys.items():
            del self.keys[name], self.key_guards[guard]
            self.endings.add(("key", name), local.end_reason)
        if local.blocks_key is not None:
            del self.blocks_keys[local.blocks_key]
            self.endings.add(("blocks", local.blocks_key), local.end_reason)

    def unname(self, local: LocalCache) -> None:
        """Drop the hold of a cache's id, which its keys still hold."""
        local.named = False
        self.directory.unname(local.cache_id)
        self.endings.add(("id", local.cache_id), local.end_reason)

    def absent(self, key: BlocksCacheKey | CacheKey | CacheKeyByIdAndIndex) -> tuple[str, str]:
        """Return problem and remedy, for a peer, where a key names nothing."""
        if isinstance(key, BlocksCacheKey):
            return absent(key, self.endings, self.blocks_keys)
        if isinstance(key, CacheKey):
            return absent(key, self.endings, self.keys)
        return absent(key, self.endings, [id_ for id_, c in self.caches.items() if c.named])

    def _check_room(self, wanted: Wanted) -> None:
        total = self.registered_addrs + len(wanted.addrs)
        if not wanted.allocated and total > self._max_registered_addrs:
            raise invalid(
                wanted.operation,
                f"the registered caches would have {total} addresses in sum, the limit is "
                f"{self._max_registered_addrs}",
                "unregister caches, or raise max_registered_addrs",
            )
        for name in wanted.slots:
            bound = self.keys.get(name)
            if bound is not None:
                req_id, model_id, prefix_id = name
                raise invalid(
                    wanted.operation,
                    f"the key req_id {req_id}, model_id {model_id}, prefix_id {prefix_id} is bound "
                    f"by cache {bound.cache_id}",
                    "remove it with remove_cache_key, or use another key",
                )

    def _file(self, local: LocalCache, blocks_key: int | None) -> None:
        self._last_id = local.cache_id
        self.caches[local.cache_id] = local
        if not local.allocated:
            self.registered_addrs += local.layout.num_tensors
        for name, (_, guard) in local.keys.items():
            self.keys[name] = local
            self.key_guards[guard] = (local, name)
        if blocks_key is not None:
            loser = self.blocks_keys.get(blocks_key)
            if loser is not None:
                _log.warning(
                    "the blocks cache key with model_id %d now names cache %d; cache %d is "
                    "reachable by its id only",
                    blocks_key,
                    local.cache_id,
                    loser.cache_id,
                )
                loser.blocks_key = None
            local.blocks_key = blocks_key
            self.blocks_keys[blocks_key] = local


def key_slots(
    operation: str, desc: CacheDesc, cache_keys: Sequence[CacheKey]
) -> dict[KeyName, int]:
    """Return which slot each key names; the last of several equal keys counts."""
    if not cache_keys:
        return {}
    num_slots = desc.check_batch(operation)
    if len(cache_keys) > num_slots:
        raise invalid(
            operation,
            f"{len(cache_keys)} cache_keys for {num_slots} slots",
            "give at most one key per slot",
        )
    return {key_name(key): slot for slot, key in enumerate(cache_keys) if key.req_id != UNUSED}


def is_accessible(desc: CacheDesc, remote_accessible: bool | None) -> bool:
    """Return whether peers may touch a cache; None means: if it is device memory."""
    if remote_accessible is None:
        return desc.placement is Placement.DEVICE
    return remote_accessible
