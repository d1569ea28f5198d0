"""Arguments of transfer_cache_async: one `Destination` per config, checked and planned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_datadist._engine.transfer.cache_checks import as_blocks, as_slots
from llm_datadist._errors import LLMException, invalid, name_peer
from llm_datadist._plan import (
    Layout,
    Plan,
    blocks_array,
    plan_blocks,
    plan_slot_to_blocks,
    plan_slots,
    slot_pieces,
)
from llm_datadist._types import BlocksCacheKey, TransferConfig, TransferWithCacheKeyConfig
from llm_datadist._types.checks import INT64_MAX, check_int, wrong_type

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_datadist._engine.transfer.calls import Transfers
    from llm_datadist._plan.indices import BlocksArray
    from llm_datadist._registry import LocalCache, Resolved
    from llm_datadist._tracing import RequestTrace
    from llm_datadist._types import BlockList

_TENSORS_PER_LAYER = 2


@dataclass(slots=True)
class Source:
    """The local cache of a layer-wise transfer, as slots or as blocks.

    Attributes:
        operation: Public name of the call.
        local: The cache.
        layout: Its tensors, divided into slots or blocks.
        is_blocks: Divided into blocks.
        num_layers: Layers of two tensors.
        blocks: Source blocks; None = all blocks, or a slot.
        dst_blocks: Destination blocks; None = the same blocks, or a slot.
        dst_block_bytes: Bytes of a destination block.
        trace: The request for which the call was made; None if the caller has not named one.
    """

    operation: str
    local: LocalCache
    layout: Layout
    is_blocks: bool
    num_layers: int
    blocks: BlocksArray | None
    dst_blocks: BlocksArray | None
    dst_block_bytes: int
    trace: RequestTrace | None = None

    def tensors(self, layer: int) -> range:
        """Return the tensors of a layer."""
        first = layer * _TENSORS_PER_LAYER
        return range(first, first + _TENSORS_PER_LAYER)

    def plan(self, src: range, slot: int, remote: Layout, dst: range, dst_slot: int) -> Plan:
        """Plan local tensors `src` against the peer's tensors `dst`."""
        if self.is_blocks:
            assert self.blocks is not None
            assert self.dst_blocks is not None
            return plan_blocks(
                self.layout, self.blocks, src, remote, self.dst_blocks, dst, push=True
            )
        if self.dst_blocks is not None:
            return plan_slot_to_blocks(
                self.layout, slot, src, remote, self.dst_blocks, dst, push=True
            )
        return plan_slots(self.layout, slot, src, remote, dst_slot, dst, self.layout.unit_bytes)


class Destination(ABC):
    """One destination of a layer-wise transfer."""

    layers: range

    @abstractmethod
    def send(self, layer: int) -> None:
        """Push one layer; raises LLMException."""


class _RawDestination(Destination):
    """Bare addresses of a peer (TransferConfig)."""

    def __init__(self, transfers: Transfers, source: Source, config: TransferConfig) -> None:
        self._transfers = transfers
        self._source = source
        self._cluster_id = config.dst_cluster_id
        self._slot = config.src_batch_index
        self.layers = _source_layers(source, config.src_layer_range)
        _check_slot(source, self._slot)
        wanted = _TENSORS_PER_LAYER * len(self.layers)
        addrs = config.dst_addrs
        if len(addrs) != wanted:
            raise invalid(
                source.operation,
                f"dst_addrs has {len(addrs)} entries for {len(self.layers)} layers",
                f"give 2 per layer, {wanted}",
            )
        unit_bytes, num_units = source.layout.unit_bytes, 1
        if source.dst_blocks is not None:
            unit_bytes = source.dst_block_bytes
            num_units = int(source.dst_blocks.max(initial=0)) + 1
        self._remotes = [Layout.raw([addr], unit_bytes, num_units) for addr in addrs]

    def send(self, layer: int) -> None:
        source = self._source
        first = (layer - self.layers.start) * _TENSORS_PER_LAYER
        # Tensor by tensor: where two of them touch they may be of different caches, and the peer
        # refuses a descriptor that does not lie in one.
        plans = [
            source.plan(range(tensor, tensor + 1), self._slot, remote, range(1), 0)
            for tensor, remote in zip(
                source.tensors(layer),
                self._remotes[first : first + _TENSORS_PER_LAYER],
                strict=True,
            )
        ]
        plan = Plan.joined(plans)
        self._transfers.push_raw(
            source.operation, self._cluster_id, source.local, plan, source.trace
        )


class _KeyDestination(Destination):
    """A cache or slot of a peer (TransferWithCacheKeyConfig), looked up for every layer."""

    def __init__(
        self, transfers: Transfers, source: Source, config: TransferWithCacheKeyConfig
    ) -> None:
        self._transfers = transfers
        self._source = source
        src, self._dst_layers = config.ranges(source.operation)
        self.layers = _source_layers(source, src)
        self._key = config.cache_key
        self._slot = config.src_batch_index
        _check_slot(source, self._slot)
        is_blocks = isinstance(self._key, BlocksCacheKey)
        if source.is_blocks and not is_blocks:
            raise invalid(
                source.operation,
                "transfer from blocks to cache is not supported",
                "name a blocks cache with a BlocksCacheKey",
            )
        if is_blocks and source.dst_blocks is None:
            raise invalid(
                source.operation,
                "a contiguous source and a BlocksCacheKey without dst_block_indices",
                "give dst_block_indices and dst_block_memory_size",
            )
        if not is_blocks and source.dst_blocks is not None:
            raise invalid(
                source.operation,
                f"dst_block_indices with the slot {self._key!r}",
                "leave the lists out, or name a blocks cache with a BlocksCacheKey",
            )

    def send(self, layer: int) -> None:
        dst_layer = self._dst_layers.start + layer - self.layers.start
        first = dst_layer * _TENSORS_PER_LAYER
        dst = range(first, first + _TENSORS_PER_LAYER)
        source = self._source

        def plan(remote: Resolved) -> Plan:
            self._check_remote(remote, dst)
            src = source.tensors(layer)
            return source.plan(src, self._slot, remote.cache.layout, dst, remote.slot)

        self._transfers.push_planned(source.operation, self._key, source.local, plan, source.trace)

    def _check_remote(self, remote: Resolved, dst: range) -> None:
        layout, source = remote.cache.layout, self._source
        problem = ""
        if remote.cache.is_blocks is not isinstance(self._key, BlocksCacheKey):
            problem = f"{self._key!r} names a cache of the other kind"
        elif dst.stop > layout.num_tensors:
            problem = f"dst_layer_range ends beyond the peer's {layout.num_tensors} tensors"
        elif source.dst_blocks is not None:
            highest = int(source.dst_blocks.max(initial=-1))
            if layout.unit_bytes != source.dst_block_bytes:
                problem = (
                    f"a destination block has {source.dst_block_bytes} bytes locally, "
                    f"{layout.unit_bytes} at the peer"
                )
            elif highest >= layout.num_units:
                problem = f"block {highest} of the peer's {layout.num_units}"
        elif remote.slot >= layout.num_units:
            problem = f"slot {remote.slot} of the peer's {layout.num_units}"
        elif source.layout.unit_bytes > layout.unit_bytes:
            problem = (
                f"a slot has {source.layout.unit_bytes} bytes locally, "
                f"{layout.unit_bytes} at the peer"
            )
        if problem:
            raise invalid(
                source.operation, problem, "match the peer's cache", cluster_id=self._key.cluster_id
            )


def make_destination(
    transfers: Transfers, source: Source, config: TransferConfig | TransferWithCacheKeyConfig
) -> Destination:
    """Return the destination of a config, checked against the source.

    Raises:
        LLMException: LLM_PARAM_INVALID.
    """
    try:
        if isinstance(config, TransferConfig):
            return _RawDestination(transfers, source, config)
        return _KeyDestination(transfers, source, config)
    except LLMException as error:
        if isinstance(config, TransferConfig):
            name_peer(error, config.dst_cluster_id)
        else:
            name_peer(error, config.cache_key.cluster_id)
        raise


def check_configs(operation: str, configs: Sequence[object], *, keys_allowed: bool) -> bool:
    """Return whether the configs have cache keys; all must be of the type that the options allow.

    Raises:
        TypeError, LLMException: as CacheManager.transfer_cache_async.
    """
    if not configs:
        raise invalid(operation, "transfer_configs is empty", "give at least one")
    kinds = (TransferConfig, TransferWithCacheKeyConfig)
    for position, config in enumerate(configs):
        if not isinstance(config, kinds):
            wanted = "TransferConfig or TransferWithCacheKeyConfig"
            raise wrong_type(f"transfer_configs[{position}]", config, wanted)
    found = {type(config) for config in configs}
    if len(found) > 1:
        raise TypeError("transfer_configs mixes TransferConfig and TransferWithCacheKeyConfig")
    by_key = found == {TransferWithCacheKeyConfig}
    if by_key is not keys_allowed:
        wanted = kinds[keys_allowed].__name__
        state = "on" if keys_allowed else "off"
        raise invalid(
            operation,
            f"transfer_configs has a {kinds[by_key].__name__} and enable_remote_cache_accessible "
            f"is {state}",
            f"use {wanted}, or change the option",
        )
    return by_key


def make_source(
    operation: str,
    local: LocalCache,
    src_blocks: BlockList | None,
    dst_blocks: BlockList | None,
    dst_block_bytes: int | None,
    *,
    all_blocks_allowed: bool,
) -> Source:
    """Check the source arguments of transfer_cache_async.

    Raises:
        TypeError, ValueError, LLMException: as CacheManager.transfer_cache_async.
    """
    size = 0
    if dst_block_bytes is not None:
        size = check_int("dst_block_memory_size", dst_block_bytes, 0, INT64_MAX)
    src = dst = None
    if src_blocks is not None:
        src = blocks_array(operation, "src_block_indices", src_blocks, None)
    is_blocks = local.is_blocks or (src is not None and len(src) > 0)
    layout = as_blocks(local) if is_blocks else local.layout
    if src is not None:
        src = blocks_array(operation, "src_block_indices", src, layout.num_units)
    if dst_blocks is not None:
        dst = blocks_array(operation, "dst_block_indices", dst_blocks, None, unique=True)
    has_destinations = dst is not None and len(dst) > 0
    if size and not has_destinations:
        raise invalid(
            operation,
            f"dst_block_memory_size is {size} and dst_block_indices is empty",
            "give dst_block_indices",
        )
    if is_blocks:
        src, dst = _block_pairs(operation, layout, src, dst, all_blocks_allowed)
        _check_equal_blocks(operation, layout, size)
        size = layout.unit_bytes
    elif dst is not None and has_destinations:
        _check_pieces(operation, layout, size, len(dst))
    else:
        src = dst = None
        as_slots(operation, local)
    num_layers = layout.num_tensors // _TENSORS_PER_LAYER
    return Source(operation, local, layout, is_blocks, num_layers, src, dst, size)


def _check_equal_blocks(operation: str, layout: Layout, size: int) -> None:
    if size not in {0, layout.unit_bytes}:
        raise invalid(
            operation,
            f"dst_block_memory_size is {size}, a source block has {layout.unit_bytes} bytes",
            "blocks of both sides must be equal",
        )


def _check_pieces(operation: str, layout: Layout, size: int, count: int) -> None:
    if not size:
        raise invalid(
            operation,
            "dst_block_indices without dst_block_memory_size and a contiguous source",
            "give the bytes of one destination block",
        )
    pieces = slot_pieces(layout, size)
    if count > pieces:
        raise invalid(
            operation,
            f"dst_block_indices has {count} entries, a slot of {layout.unit_bytes} bytes holds "
            f"{pieces} pieces of {size} bytes",
            "give at most that many",
        )


def _block_pairs(
    operation: str,
    layout: Layout,
    src: BlocksArray | None,
    dst: BlocksArray | None,
    all_blocks_allowed: bool,
) -> tuple[BlocksArray, BlocksArray]:
    if src is None and dst is None:
        if not all_blocks_allowed:
            raise invalid(
                operation,
                "transfer from blocks to cache is not supported",
                "give src_block_indices and dst_block_indices",
            )
        every = blocks_array(operation, "src_block_indices", range(layout.num_units), None)
        return every, every
    if dst is None:
        raise invalid(
            operation,
            "transfer from blocks to cache is not supported: src_block_indices without "
            "dst_block_indices",
            "give dst_block_indices",
        )
    if src is None or len(src) != len(dst):
        raise invalid(
            operation,
            f"src_block_indices has {0 if src is None else len(src)} entries, dst_block_indices "
            f"{len(dst)}",
            "give lists of equal length",
        )
    return src, dst


def _source_layers(source: Source, layers: range | None) -> range:
    if layers is None:
        layers = range(source.num_layers)
    if not layers or layers.stop > source.num_layers:
        raise invalid(
            source.operation,
            f"src_layer_range {layers} of a cache with {source.num_layers} layers of two tensors",
            f"give a range inside range(0, {source.num_layers})",
        )
    return layers


def _check_slot(source: Source, slot: int) -> None:
    if not source.is_blocks and slot >= source.layout.num_units:
        raise invalid(
            source.operation,
            f"src_batch_index is {slot}, the cache has {source.layout.num_units} slots",
            f"give 0 to {source.layout.num_units - 1}",
        )
