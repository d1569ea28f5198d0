"""Reader of a peer's directory: parses it once, then only what a new version adds.

When the version has not changed, a lookup costs one comparison and a dictionary access; when it
has, the new records are fetched and parsed, or all of them where the owner compacted its log.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Protocol, final

from llm_datadist._errors import LLMStatusCode, fail, invalid
from llm_datadist._registry.endings import Endings
from llm_datadist._registry.records import (
    MAX_LOG_BYTES,
    CorruptDirectory,
    decode_frames_with_ends,
)
from llm_datadist._registry.remote_caches import RemoteTables, Resolved
from llm_datadist._types import BlocksCacheKey, CacheKey
from llm_datadist._types.refs import NO_REF

if TYPE_CHECKING:
    from llm_datadist._errors import LLMException
    from llm_datadist._registry.remote_caches import RemoteCache
    from llm_datadist._types import AnyKey

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
        self._tables = RemoteTables(Endings())
        self._is_torn = False  # whether the tables may have more than the version says

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
        if resolved is None and not fresh:
            self.refresh(operation, deadline_ns)
            resolved = self.lookup(key)  # also if another thread has read what was new
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
        if not resolved.cache.checked:
            resolved.cache.check()
        return resolved

    def caches(self) -> list[RemoteCache]:
        """Return the known caches."""
        return list(self._tables.caches.values())

    def _take(self, operation: str, version: int, deadline_ns: int) -> bool:
        """Read and apply the log up to `version`; return False if it was rewritten meanwhile."""
        era, tail = version >> _TAIL_BITS, version & _TAIL_MASK
        known_era, known_tail = self._version >> _TAIL_BITS, self._version & _TAIL_MASK
        same_era = era == known_era and not self._is_torn
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
            self._tables = RemoteTables(self._tables.endings)
            self._version = era << _TAIL_BITS
        self._apply(operation, log, deadline_ns)
        return True

    def _apply(self, operation: str, log: bytes, deadline_ns: int) -> None:
        """Apply the frames after the known ones; then the version says how far that came.

        So a call that is out of time leaves what it has parsed to the next call. After one in which
        a signal handler raises, the next call reads the whole log.
        """
        base, apply = self._version, self._tables.apply
        count = begun = applied = looked = 0
        self._is_torn = True
        try:
            for record, end in decode_frames_with_ends(log):
                begun = end
                apply(record)
                applied = end
                count += 1
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
        except CorruptDirectory:
            begun = applied  # of a record that is refused nothing is applied
            raise
        finally:
            self._version = base + applied
            self._is_torn = begun != applied

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
