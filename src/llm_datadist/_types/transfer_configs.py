"""Arguments of transfers: destinations of a layer-by-layer push, synchronizers, memory ranges.

Source: api.md 6.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import final

from llm_datadist._errors import invalid
from llm_datadist._types.checks import (
    INT64_MAX,
    check_instance,
    check_int,
    check_list_of_ints,
    check_range,
    check_uint32,
    check_uint64,
)
from llm_datadist._types.enums import Memtype
from llm_datadist._types.keys import BlocksCacheKey, CacheKeyByIdAndIndex
from llm_datadist._types.named_calls import names_calls

__all__ = ["LayerSynchronizer", "MemInfo", "TransferConfig", "TransferWithCacheKeyConfig"]


def _layers(operation: str, name: str, value: object) -> range | None:
    """Return a range of layers, None for all of them."""
    if value is None:
        return None
    layers = check_range(name, value)
    if layers.step != 1 or not layers or layers.start < 0:
        raise invalid(
            operation,
            f"{name} {layers} is not an ascending range of layers",
            f"give {name} as range(first, last + 1) with step 1",
        )
    return layers


@names_calls
@final
class TransferConfig:
    """Destination of `transfer_cache_async` by raw addresses; the peer checks each of them.

    Args:
        dst_cluster_id: Peer, uint64.
        dst_addrs: The peer's addresses of the tensors of each layer, two per layer, slot offset
            added: list or tuple of uint64.
        src_layer_range: Layers to send, a range of step 1; None for all.
        src_batch_index: Slot of the source cache, uint32.

    Raises:
        TypeError: A wrong type.
        ValueError: An integer outside its width.
        LLMException: LLM_PARAM_INVALID: src_layer_range is empty, stepped or starts below 0.
    Source: api.md 6. The setters check as the constructor does.
    """

    __slots__ = ("_dst_addrs", "_dst_cluster_id", "_src_batch_index", "_src_layer_range")

    def __init__(
        self,
        dst_cluster_id: int,
        dst_addrs: list[int],
        src_layer_range: range | None = None,
        src_batch_index: int = 0,
    ) -> None:
        self.dst_cluster_id = dst_cluster_id
        self.dst_addrs = dst_addrs
        self.src_layer_range = src_layer_range
        self.src_batch_index = src_batch_index

    @property
    def dst_cluster_id(self) -> int:
        """Peer."""
        return self._dst_cluster_id

    @dst_cluster_id.setter
    def dst_cluster_id(self, value: int) -> None:
        self._dst_cluster_id = check_uint64("dst_cluster_id", value)

    @property
    def dst_addrs(self) -> list[int]:
        """The peer's addresses, two per layer; a new list each time."""
        return list(self._dst_addrs)

    @dst_addrs.setter
    def dst_addrs(self, value: list[int]) -> None:
        self._dst_addrs = tuple(check_list_of_ints("dst_addrs", value))

    @property
    def src_layer_range(self) -> range | None:
        """Layers to send; None for all."""
        return self._src_layer_range

    @src_layer_range.setter
    def src_layer_range(self, value: range | None) -> None:
        self._src_layer_range = _layers("TransferConfig", "src_layer_range", value)

    @property
    def src_batch_index(self) -> int:
        """Slot of the source cache."""
        return self._src_batch_index

    @src_batch_index.setter
    def src_batch_index(self, value: int) -> None:
        self._src_batch_index = check_uint32("src_batch_index", value)

    def __repr__(self) -> str:
        addresses = ", ".join(map(hex, self._dst_addrs[:4]))
        if len(self._dst_addrs) > 4:
            addresses += ", ..."
        return (
            f"TransferConfig(dst_cluster_id={self._dst_cluster_id}, dst_addrs=[{addresses}], "
            f"src_layer_range={self._src_layer_range}, src_batch_index={self._src_batch_index})"
        )


@names_calls
@final
class TransferWithCacheKeyConfig:
    """Destination of `transfer_cache_async` by key.

    Args:
        cache_key: Destination cache (BlocksCacheKey) or slot (CacheKeyByIdAndIndex).
        src_layer_range: Layers to send, a range of step 1; required at use.
        dst_layer_range: Layers that they become; required at use, of the same length.
        src_batch_index: Slot of the source cache, uint32; 0 with a BlocksCacheKey.

    Raises:
        TypeError: A wrong type.
        ValueError: An integer outside its width.
        LLMException: LLM_PARAM_INVALID: a range is empty, stepped or starts below 0.
    Source: api.md 6. The setters check as the constructor does.
    """

    __slots__ = ("_cache_key", "_dst_layer_range", "_src_batch_index", "_src_layer_range")

    def __init__(
        self,
        cache_key: BlocksCacheKey | CacheKeyByIdAndIndex,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        src_batch_index: int = 0,
    ) -> None:
        self.cache_key = cache_key
        self.src_layer_range = src_layer_range
        self.dst_layer_range = dst_layer_range
        self.src_batch_index = src_batch_index

    @property
    def cache_key(self) -> BlocksCacheKey | CacheKeyByIdAndIndex:
        """Destination."""
        return self._cache_key

    @cache_key.setter
    def cache_key(self, value: BlocksCacheKey | CacheKeyByIdAndIndex) -> None:
        self._cache_key = check_instance("cache_key", value, BlocksCacheKey, CacheKeyByIdAndIndex)

    @property
    def src_layer_range(self) -> range | None:
        """Layers to send."""
        return self._src_layer_range

    @src_layer_range.setter
    def src_layer_range(self, value: range | None) -> None:
        self._src_layer_range = _layers("TransferWithCacheKeyConfig", "src_layer_range", value)

    @property
    def dst_layer_range(self) -> range | None:
        """Layers that they become."""
        return self._dst_layer_range

    @dst_layer_range.setter
    def dst_layer_range(self, value: range | None) -> None:
        self._dst_layer_range = _layers("TransferWithCacheKeyConfig", "dst_layer_range", value)

    @property
    def src_batch_index(self) -> int:
        """Slot of the source cache."""
        return self._src_batch_index

    @src_batch_index.setter
    def src_batch_index(self, value: int) -> None:
        self._src_batch_index = check_uint32("src_batch_index", value)

    def ranges(self, operation: str) -> tuple[range, range]:
        """Return the source and destination layers, after the checks that belong to the use.

        Args:
            operation: Named in the text of the exception.

        Raises:
            LLMException: LLM_PARAM_INVALID: a range is missing, their lengths differ, or
                src_batch_index is not 0 with a BlocksCacheKey.
        """
        src, dst = self._src_layer_range, self._dst_layer_range
        if src is None or dst is None:
            missing = "src_layer_range" if src is None else "dst_layer_range"
            raise invalid(operation, f"{missing} of {self!r} is not set", "set both layer ranges")
        num_src, num_dst = src.stop - src.start, dst.stop - dst.start  # `len` ends at 2**63
        if num_src != num_dst:
            raise invalid(
                operation,
                f"src_layer_range has {num_src} layers, dst_layer_range {num_dst}",
                "give ranges of equal length",
            )
        if self._src_batch_index and isinstance(self._cache_key, BlocksCacheKey):
            raise invalid(
                operation,
                f"src_batch_index is {self._src_batch_index} with a BlocksCacheKey",
                "leave it 0, or use CacheKeyByIdAndIndex",
            )
        return src, dst

    def __repr__(self) -> str:
        return (
            f"TransferWithCacheKeyConfig(cache_key={self._cache_key}, "
            f"src_layer_range={self._src_layer_range}, dst_layer_range={self._dst_layer_range}, "
            f"src_batch_index={self._src_batch_index})"
        )


class LayerSynchronizer(ABC):
    """Base of the caller's class that says when a layer of the source is complete.

    Source: api.md 6. A sub-class need not call super().__init__().
    """

    @abstractmethod
    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        """Wait until a layer can be sent; called on the transfer's own thread, may block.

        Args:
            layer_index: Which layer, ascending from call to call.
            timeout_in_millis: How long to wait; None for no limit.

        Returns:
            True to send the layer. False, or an exception, ends the transfer: its destinations get
            LLM_FAILED.
        """


@names_calls
@final
class MemInfo:
    """A range of memory for `remap_registered_memory`, which checks it.

    Args:
        mem_type: Kind of memory.
        addr: First byte, in [0, 2**63).
        size: Bytes; any integer.

    Raises:
        TypeError: A wrong type.
        ValueError: addr is out of range.
    Source: api.md 6. Immutable, hashable, equal by value.
    """

    __slots__ = ("_addr", "_mem_type", "_size")

    def __init__(self, mem_type: Memtype, addr: int, size: int) -> None:
        self._mem_type = check_instance("mem_type", mem_type, Memtype)
        self._addr = check_int("addr", addr, 0, INT64_MAX)
        self._size = check_int("size", size, -math.inf, math.inf)

    @property
    def mem_type(self) -> Memtype:
        """Kind of memory."""
        return self._mem_type

    @property
    def addr(self) -> int:
        """First byte."""
        return self._addr

    @property
    def size(self) -> int:
        """Bytes."""
        return self._size

    def __eq__(self, other: object) -> bool:
        if isinstance(other, MemInfo):
            values = (self._mem_type, self._addr, self._size)
            return values == (other._mem_type, other._addr, other._size)
        return NotImplemented

    def __hash__(self) -> int:
        return hash((self._mem_type, self._addr, self._size))

    def __repr__(self) -> str:
        return f"MemInfo(mem_type={self._mem_type}, addr={self._addr:#x}, size={self._size})"
