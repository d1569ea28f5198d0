"""Reader of a peer's directory: parses it once, then only what a new version adds.

When the version has not changed, a lookup costs one comparison and a dictionary access; when it
has, the new records are fetched and parsed, or all of them where the owner compacted its log.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, final

import numpy as np

from llm_datadist._errors import LLMStatusCode, fail, invalid
from llm_datadist._plan.layouts import check_fit, from_bytes
from llm_datadist._registry.endings import Endings, absent
from llm_datadist._registry.layouts import cache_layout
from llm_datadist._registry.records import (
    DEALLOCATED,
    MAX_ALL_KEYS,
    MAX_CACHES,
    MAX_LOG_BYTES,
    Added,
    CorruptDirectory,
    KeyName,
    KeyRemoved,
    Remapped,
    Removed,
    Unnamed,
    decode_frames_with_ends,
)
from llm_datadist._types import BlocksCacheKey, CacheDesc, CacheKey, DataType, Placement
from llm_datadist._types.refs import NO_REF

if TYPE_CHECKING:
    from llm_datadist._errors import LLMException
    from llm_datadist._plan import Layout
    from llm_datadist._plan.layouts import KvLayout
    from llm_datadist._registry.records import Record
    from llm_datadist._types import AnyKey
    from llm_datadist._types.refs import Ref

    _Described: TypeAlias = tuple[CacheDesc, Layout, KvLayout | None]


_TAIL_BITS = 40
_TAIL_MASK = (1 << _TAIL_BITS) - 1
_REWRITE_PAUSE_S = 0.0001
_RECORDS_BETWEEN_LOOKS = 256  # at the deadline: a few milliseconds
_BYTES_BETWEEN_LOOKS = 64 << 10


class DirectorySource(Protocol):
    """Where a peer's directory is read from. Deadlines are CLOCK_MONOTONIC nanoseconds.

    Its exceptions (dead peer, deadline) reach the caller of the reader.
    """

    def version(self, deadline_ns: int) -> int:
        """Return the directory's version now."""

    def read_log(self, offset: int, size: int, deadline_ns: int) -> bytes:
        """Return a piece of the log."""


@final
class RemoteCache:
    """A peer's cache.

    Its description is checked and its layout computed when a key first names it: most caches of a
    large directory are never used, and parsing it must not take time for them.

    Attributes:
        cache_id: Its id at the peer.
        ref: Its entry there; part of every request for it. A remap changes the value.
        is_blocks: Whether it is a blocks cache.
        accessible: Whether peers may touch it.
        named: Whether its id can be used in keys.
        blocks_key: The model_id of its BlocksCacheKey, if it has one.
        keys: Its CacheKeys by their guards.
        on_device: Whether its memory is an accelerator's.
    """

    __slots__ = (
        "_described",
        "_record",
        "accessible",
        "blocks_key",
        "cache_id",
        "is_blocks",
        "keys",
        "named",
        "on_device",
        "ref",
    )

    def __init__(self, record: Added) -> None:
        self._record = record
        self._described: _Described | None = None
        self.cache_id: int = record.cache_id
        self.ref: Ref = record.entry
        self.is_blocks = record.is_blocks
        self.accessible = record.accessible
        self.named = record.named
        self.blocks_key = record.blocks_key
        self.keys: dict[Ref, KeyName] = (
            {key.guard: key.name for key in record.keys} if record.keys else {}
        )
        self.on_device = record.on_device

    def check(self) -> None:
        """Check the description that the peer published, once.

        Raises:
            CorruptDirectory: No cache can be like that.
        """
        self._describe()

    @property
    def desc(self) -> CacheDesc:
        """Its description. Raises as `check`."""
        return self._describe()[0]

    @property
    def layout(self) -> Layout:
        """Where its tensors lie in the peer's address space, in slots or blocks.

        Without tensors when the cache is not accessible. Raises as `check`.
        """
        return self._describe()[1]

    @property
    def kv_layout(self) -> KvLayout | None:
        """What its blocks hold, which fits `desc`; None if the owner has not said so.

        Raises as `check`.
        """
        return self._describe()[2]

    def _describe(self) -> _Described:
        if self._described is None:
            self._described = _described(self._record)
        return self._described


class Resolved(NamedTuple):
    """What a key names.

    Attributes:
        cache: The peer's cache.
        slot: The slot that the key names; 0 with a BlocksCacheKey.
        key_ref: Guard of a CacheKey, which the pull must find live; NO_REF with other keys.
    """

    cache: RemoteCache
    slot: int
    key_ref: Ref


@final
class DirectoryReader:
    """The directory of one peer.

    Args:
        source: Where to read it from.
        cluster_id: The peer, for messages.

    Thread-safe.
    """

    def __init__(self, source: DirectorySource, cluster_id: int) -> None:
        self._source = source
        self._cluster_id = cluster_id
        self._lock = threading.Lock()
        self._version = 0
        self._tables = _Tables(Endings())

    @property
    def version(self) -> int:
        """Version that was read last; a condition of transfers that skip the refresh."""
        return self._version

    def refresh(self, operation: str, deadline_ns: int) -> bool:
        """Read what has changed at the peer; return whether anything has.

        Raises:
            LLMException: LLM_TIMEOUT if the peer was rewriting its directory until the deadline, or
                the deadline passed while it was parsed.
            CorruptDirectory: What the peer published breaks the protocol.
        """
        version = self._source.version(deadline_ns)
        if version == self._version:
            return False
        if not self._lock.acquire(timeout=max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9)):
            raise self._out_of_time(operation, "another call read the peer's directory")
        try:
            while version != self._version:
                if version >> _TAIL_BITS & 1:
                    self._pause(operation, deadline_ns)
                elif self._take(operation, version, deadline_ns):
                    return True
                else:
                    self._pause(operation, deadline_ns)
                version = self._source.version(deadline_ns)
        finally:
            self._lock.release()
        return True

    def lookup(self, key: AnyKey) -> Resolved | None:
        """Return what a key names as of the known version, without asking the peer.

        The cache's description may still be impossible: `resolve` checks it.
        """
        tables = self._tables
        if isinstance(key, BlocksCacheKey):
            return tables.blocks_keys.get(key.model_id)
        if isinstance(key, CacheKey):
            return tables.keys.get((key.req_id, key.model_id, key.prefix_id))
        cache = tables.caches.get(key.cache_id)
        if cache is None or not cache.named:
            return None
        return Resolved(cache, key.batch_index, NO_REF)

    def resolve(self, operation: str, key: AnyKey, deadline_ns: int, *, fresh: bool) -> Resolved:
        """Return the accessible cache that a key names.

        Args:
            operation: API call.
            key: Any key with the peer's cluster id.
            deadline_ns: Deadline of reads from the peer.
            fresh: Read what is new first; otherwise only when the key is not known.

        Raises:
            LLMException: LLM_KV_CACHE_NOT_EXIST if the peer has nothing of that name,
                LLM_PARAM_INVALID if it keeps the cache to itself, LLM_TIMEOUT as in `refresh`.
            CorruptDirectory: As in `refresh`, or what was published about the cache makes no sense.
        """
        if fresh:
            self.refresh(operation, deadline_ns)
        resolved = self.lookup(key)
        if resolved is None and not fresh and self.refresh(operation, deadline_ns):
            resolved = self.lookup(key)
        if resolved is None:
            problem, remedy = self._tables.absent(key)
            status = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
            raise fail(status, operation, problem, remedy, cluster_id=self._cluster_id)
        if not resolved.cache.accessible:
            raise invalid(
                operation,
                f"cache {resolved.cache.cache_id}, named by {key}, is not remote-accessible",
                "register it there with remote_accessible=True",
                cluster_id=self._cluster_id,
            )
        resolved.cache.check()
        return resolved

    def caches(self) -> list[RemoteCache]:
        """Return the known caches."""
        return list(self._tables.caches.values())

    def _take(self, operation: str, version: int, deadline_ns: int) -> bool:
        """Read and apply the log up to `version`; return False if it was rewritten meanwhile."""
        era, tail = version >> _TAIL_BITS, version & _TAIL_MASK
        known_era, known_tail = self._version >> _TAIL_BITS, self._version & _TAIL_MASK
        same_era = era == known_era
        if same_era and tail <= known_tail:
            return True  # another thread got further
        if tail > MAX_LOG_BYTES:
            raise CorruptDirectory(f"a log of {tail} bytes; at most {MAX_LOG_BYTES} are possible")
        offset = known_tail if same_era else 0
        log = self._source.read_log(offset, tail - offset, deadline_ns) if tail > offset else b""
        if self._source.version(deadline_ns) >> _TAIL_BITS != era:
            return False  # what was read may be of two logs
        if len(log) != tail - offset:
            raise CorruptDirectory(f"{len(log)} bytes of the log instead of {tail - offset}")
        if not same_era:
            self._tables = _Tables(self._tables.endings)
            self._version = era << _TAIL_BITS
        self._apply(operation, log, deadline_ns)
        return True

    def _apply(self, operation: str, log: bytes, deadline_ns: int) -> None:
        """Apply the frames after the known ones; the version grows with each.

        So a call that is out of time leaves what it has parsed to the next call.
        """
        base, looked = self._version, 0
        for count, (record, end) in enumerate(decode_frames_with_ends(log), 1):
            self._tables.apply(record)
            self._version = base + end
            if count % _RECORDS_BETWEEN_LOOKS and end - looked < _BYTES_BETWEEN_LOOKS:
                continue
            looked = end
            if time.monotonic_ns() >= deadline_ns:
                raise fail(
                    LLMStatusCode.LLM_TIMEOUT,
                    operation,
                    f"the deadline passed after {count} records of the peer's directory",
                    "retry, which goes on from there, or raise sync_kv_timeout",
                    cluster_id=self._cluster_id,
                )

    def _pause(self, operation: str, deadline_ns: int) -> None:
        if time.monotonic_ns() >= deadline_ns:
            raise self._out_of_time(operation, "the peer was rewriting its directory")
        time.sleep(_REWRITE_PAUSE_S)

    def _out_of_time(self, operation: str, what: str) -> LLMException:
        return fail(
            LLMStatusCode.LLM_TIMEOUT,
            operation,
            f"{what} until the deadline",
            "retry, or check that the peer's process runs",
            cluster_id=self._cluster_id,
        )


class _Tables:
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
        if isinstance(record, Added):
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
        cache = RemoteCache(record)
        self._num_keys += len(cache.keys)
        self.caches[record.cache_id] = cache
        if record.blocks_key is not None:
            self.blocks_keys[record.blocks_key] = Resolved(cache, 0, NO_REF)
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


def _described(record: Added) -> _Described:
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
