"""Messages between workers in push mode: each a page of memory that the other side pushes into.

A page begins as zeros. Whoever reads it takes nothing of a message that is not whole: the digest of
the body comes before it.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np

from llm_datadist import BlocksCacheKey, CacheDesc, DataType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llm_datadist import Cache, CacheManager

__all__ = ["PAGE_BYTES", "Mailbox", "Receipt", "Ticket", "send_message"]

PAGE_BYTES = 256 << 10
_HEADER = struct.Struct("<I32s")

_Message = TypeVar("_Message", "Ticket", "Receipt")


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """The consumer has made room for a request.

    Attributes:
        cluster_id: The consumer's worker.
        key: First BlocksCacheKey.model_id under which its memory takes pushes.
        receipt_key: That of the page for the `Receipt`.
        prompt: Digest of its request's prompt.
        first: Index of the first block of the prompt that it wants.
        blocks: Its blocks from that one on; none when it wants nothing.
        num_tokens: How many of the prompt's tokens it wants, those before `first` included.
    """

    cluster_id: int
    key: int
    receipt_key: int
    prompt: str
    first: int
    blocks: list[int]
    num_tokens: int


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """The producer will push nothing more.

    Attributes:
        prompt: Digest of its request's prompt.
        problem: Why not all has been pushed; "" when it has.
    """

    prompt: str
    problem: str = ""


class Mailbox:
    """A page of this worker that peers who know its key can push one message into."""

    def __init__(self, manager: CacheManager, cluster_id: int, key: int) -> None:
        self._manager = manager
        self._memory = np.zeros(PAGE_BYTES, np.uint8)
        self._cache: Cache | None = manager.register_blocks_cache(
            _desc(),
            [self._memory.ctypes.data],
            BlocksCacheKey(cluster_id, key),
            remote_accessible=True,
        )

    def read(self, kind: type[_Message]) -> _Message | None:
        """The message, or None as long as it is not there as a whole."""
        size, digest = _HEADER.unpack(self._memory[: _HEADER.size].tobytes())
        if not 0 < size <= PAGE_BYTES - _HEADER.size:
            return None
        body = self._memory[_HEADER.size : _HEADER.size + size].tobytes()
        if hashlib.sha256(body).digest() != digest:
            return None
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError:
            return None

    def close(self) -> None:
        """Take no message any more; idempotent."""
        cache, self._cache = self._cache, None
        if cache is not None:
            self._manager.unregister_cache(cache.cache_id)


def send_message(manager: CacheManager, key: BlocksCacheKey, message: Any) -> None:
    """Push a message into a peer's page; it is there when this returns.

    Raises:
        ValueError: It does not fit into a page.
        LLMException: As `push_blocks`: LLM_KV_CACHE_NOT_EXIST when there is no such page (yet).
    """
    memory = _written(message)
    cache = manager.register_blocks_cache(_desc(), [memory.ctypes.data], remote_accessible=False)
    try:
        manager.push_blocks(key, cache, [0], [0])
    finally:
        manager.unregister_cache(cache.cache_id)


def _written(message: Any) -> NDArray[np.uint8]:
    body = msgspec.json.encode(message)
    if len(body) > PAGE_BYTES - _HEADER.size:
        raise ValueError(f"a message of {len(body)} bytes does not fit into a page")
    memory = np.zeros(PAGE_BYTES, np.uint8)
    data = _HEADER.pack(len(body), hashlib.sha256(body).digest()) + body
    memory[: len(data)] = np.frombuffer(data, np.uint8)
    return memory


def _desc() -> CacheDesc:
    return CacheDesc(1, [1, PAGE_BYTES], DataType.DT_UINT8)
