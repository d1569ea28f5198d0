"""Messages between workers in push mode, each pushed into a page of the receiver's memory.

A mailbox starts as zeros. The body of a message is preceded by its size and digest, so that the
receiver never takes a message that has arrived only in part.
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

PAGE_BYTES = 256 << 10
_HEADER = struct.Struct("<I32s")

_Message = TypeVar("_Message", "Ticket", "Receipt")


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """From the consumer: the producer may push a request into these blocks.

    Attributes:
        cluster_id: The consumer's worker.
        key: BlocksCacheKey.model_id under which the first part of its blocks is published.
        receipt_key: That of its mailbox for the `Receipt`.
        prompt: Digest of its request's prompt.
        first: Index of the first block of the prompt that it needs.
        blocks: Its blocks from that one on; empty if it needs none.
        num_tokens: How many of the prompt's tokens it needs, including those before `first`.
        block_size: Tokens of its blocks.
        tp_size: Tensor-parallel ranks of the consumer.
        rank: Tensor-parallel rank of the consumer's worker.
        layers: Layers that it holds, as first and end; None if they are not known.
        stage: Its pipeline stage.
        stages: Layers of each pipeline stage of the consumer.
    """

    cluster_id: int
    key: int
    receipt_key: int
    prompt: str
    first: int
    blocks: list[int]
    num_tokens: int
    block_size: int
    tp_size: int
    rank: int
    layers: tuple[int, int] | None = None
    stage: int = 0
    stages: tuple[tuple[int, int] | None, ...] = (None,)


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """From the producer: it pushes nothing more.

    Attributes:
        prompt: Digest of its request's prompt.
        problem: Why not all blocks were pushed; "" if they were.
    """

    prompt: str
    problem: str = ""


class Mailbox:
    """A page of this worker into which peers that know its key can push one message."""

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
        """Return the message, or None until one of this kind has arrived completely.

        Never raises, whatever a peer has written.
        """
        size, digest = _HEADER.unpack(self._memory[: _HEADER.size].tobytes())
        if not 0 < size <= PAGE_BYTES - _HEADER.size:
            return None
        body = self._memory[_HEADER.size : _HEADER.size + size].tobytes()
        if hashlib.sha256(body).digest() != digest:
            return None
        try:
            return msgspec.json.decode(body, type=kind)
        except (ValueError, RecursionError):  # no JSON, no UTF-8, another kind, too deep
            return None

    def close(self) -> None:
        """Stop taking messages; idempotent."""
        cache, self._cache = self._cache, None
        if cache is not None:
            self._manager.unregister_cache(cache.cache_id)


def send_message(manager: CacheManager, key: BlocksCacheKey, message: Any) -> None:
    """Push a message into a peer's mailbox; it has arrived when this returns.

    Raises:
        ValueError: The message is too large.
        LLMException: As `push_blocks`: LLM_KV_CACHE_NOT_EXIST if there is no such mailbox (yet).
    """
    memory = _page_of(message)
    cache = manager.register_blocks_cache(_desc(), [memory.ctypes.data], remote_accessible=False)
    try:
        manager.push_blocks(key, cache, [0], [0])
    finally:
        manager.unregister_cache(cache.cache_id)


def _page_of(message: Any) -> NDArray[np.uint8]:
    body = msgspec.json.encode(message)
    if len(body) > PAGE_BYTES - _HEADER.size:
        raise ValueError(f"a message of {len(body)} bytes does not fit into a mailbox")
    memory = np.zeros(PAGE_BYTES, np.uint8)
    data = _HEADER.pack(len(body), hashlib.sha256(body).digest()) + body
    memory[: len(data)] = np.frombuffer(data, np.uint8)
    return memory


def _desc() -> CacheDesc:
    return CacheDesc(1, [1, PAGE_BYTES], DataType.DT_UINT8)
