"""Layout of vLLM's KV tensors as blocks caches, and the keys of these caches.

The interior of a block is opaque. A part is a set of equally shaped tensors, each a plain run of
blocks, indexed by the blocks of one KV cache group. Part i of a request is registered as the cache
`key + i`. Of tensors, only `data_ptr`, `shape`, `stride` and `element_size` are used, and of those
of states `storage_offset`.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llm_datadist.integrations.vllm.states import describe_state, is_state, specs_of, state_problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_KEY = 2**63 - 1
MAX_PARTS = 256
_TRANSFERABLE = {
    "FullAttentionSpec",
    "MLAAttentionSpec",
    "SlidingWindowSpec",
    "SlidingWindowMLASpec",
    "ChunkedLocalAttentionSpec",
}
"""Kinds of KV cache spec whose blocks hold tokens that do not depend on later ones."""


@dataclass(frozen=True, slots=True)
class Part:
    """Equally shaped tensors of one KV cache group.

    Attributes:
        group: Index among the KV cache groups.
        addrs: Address of each tensor.
        num_blocks: Blocks of each.
        block_bytes: Bytes of one block of one tensor.
        layers: Names of the layers whose KV this is.
    """

    group: int
    addrs: tuple[int, ...]
    num_blocks: int
    block_bytes: int
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KVLayout:
    """All KV memory of one worker.

    Attributes:
        parts: The memory.
        block_sizes: Tokens of a block, by KV cache group.
        groups: Kinds of the groups, for the compatibility check.
        rank: Index of the worker among those of its engine.
        has_states: Whether blocks of a group hold running states.
    """

    parts: tuple[Part, ...]
    block_sizes: tuple[int, ...]
    groups: str
    rank: int
    has_states: bool = False

    def describe(self, sizes: Sequence[tuple[int, int]] | None = None) -> str:
        """Describe the shape of the memory, without addresses and block counts.

        Args:
            sizes: Tensors of each part, and bytes of a block; None = as they are.
        """
        sizes = sizes or [(len(part.addrs), part.block_bytes) for part in self.parts]
        return "; ".join(
            f"group {part.group}: {num_tensors} tensors, {block_bytes} bytes a block"
            for part, (num_tensors, block_bytes) in zip(self.parts, sizes, strict=True)
        )


@dataclass(slots=True)
class _Run:
    """Blocks at equal distances: one every `stride_bytes`."""

    addr: int
    page_bytes: int
    stride_bytes: int
    layers: list[str] = field(default_factory=list)


def kv_layout_of(kv_caches: dict[str, Any], kv_cache_config: Any, rank: int) -> KVLayout:
    """Derive the layout of a worker's KV tensors.

    Args:
        kv_caches: Layer name -> tensor, as vLLM registers them.
        kv_cache_config: vLLM's KVCacheConfig: groups and number of blocks.
        rank: Index of the worker among those of its engine.

    Raises:
        ValueError: A layout or a kind of cache that cannot be moved block by block.
    """
    groups = kv_cache_config.kv_cache_groups
    num_blocks = kv_cache_config.num_blocks
    _check_kinds([group.kv_cache_spec for group in groups])
    parts: list[Part] = []
    for index, group in enumerate(groups):
        runs: dict[int, _Run] = {}
        specs = getattr(group.kv_cache_spec, "kv_cache_specs", {})
        for layer in group.layer_names:
            spec = specs.get(layer, group.kv_cache_spec)
            for run in _runs_of(layer, kv_caches[layer], num_blocks, spec):
                runs.setdefault(run.addr, run).layers.append(layer)
        merged = _merged(list(runs.values()))
        places = {layer: place for place, layer in enumerate(group.layer_names)}
        merged.sort(key=lambda run: places[run.layers[0]])  # not by address, which is by chance
        parts += _parts_of(index, merged, num_blocks)
    if not parts or len(parts) > MAX_PARTS:
        raise ValueError(f"the KV cache has {len(parts)} kinds of blocks, at most {MAX_PARTS} work")
    return KVLayout(
        parts=tuple(parts),
        block_sizes=tuple(int(group.kv_cache_spec.block_size) for group in groups),
        groups=", ".join(_kind_of(group.kv_cache_spec) for group in groups),
        rank=rank,
        has_states=any(is_state(spec) for each in groups for spec in specs_of(each.kv_cache_spec)),
    )


def random_key(num_keys: int = MAX_PARTS) -> int:
    """Return the first of `num_keys` consecutive keys that peers cannot guess."""
    return (secrets.randbelow(MAX_KEY // num_keys - 1) + 1) * num_keys


def _check_kinds(specs: Sequence[Any]) -> None:
    groups = [specs_of(spec) for spec in specs]
    kinds = [[type(each).__name__ for each in group] for group in groups]
    listed = "; ".join(
        f"group {index}: {', '.join(dict.fromkeys(each))}" for index, each in enumerate(kinds)
    )
    for index, spec in ((index, spec) for index, each in enumerate(groups) for spec in each):
        kind = type(spec).__name__
        if kind in _TRANSFERABLE:
            continue
        why = "its blocks hold something else than the KV of their tokens"
        if is_state(spec):
            why = state_problem(spec, groups[index])
        if why:
            raise ValueError(
                f"KV cache group {index} is a {kind}: {why} (the model has {listed}); or serve "
                "this model without LLMDataDistConnector"
            )


def _kind_of(group_spec: Any) -> str:
    """Describe a group's kind for the compatibility check."""
    states = dict.fromkeys(describe_state(spec) for spec in specs_of(group_spec) if is_state(spec))
    return "; ".join(states) or type(group_spec).__name__


def _runs_of(layer: str, tensor: Any, num_blocks: int, spec: Any) -> list[_Run]:
    """Return the runs of blocks of one layer: one, or several if its KV is not contiguous."""
    tensors = list(tensor) if isinstance(tensor, (list, tuple)) else [tensor]
    for each in tensors:
        if str(getattr(each, "device", "cpu")) != "cpu":
            raise ValueError(
                f"the KV cache of {layer} is on {each.device}; this version of llm_datadist moves "
                "host memory only: run vLLM for CPU"
            )
    if is_state(spec):
        return [_run_of_states(layer, tensors, num_blocks, int(spec.page_size_bytes))]
    return _runs_of_tokens(layer, tensor, num_blocks)


def _run_of_states(layer: str, tensors: list[Any], num_blocks: int, page_bytes: int) -> _Run:
    """Return the run of a layer with states, whose blocks are pages with all states of it.

    A page may be padded at its end; what is in other places would be of other blocks.
    """
    first = min(tensors, key=lambda tensor: int(tensor.data_ptr()))
    addr, stride_bytes = int(first.data_ptr()), first.stride()[0] * first.element_size()
    is_page = first.storage_offset() * first.element_size() % page_bytes == 0
    for tensor in tensors:
        inner = sum((size - 1) * step for size, step in _inner(tensor)) + 1
        end = int(tensor.data_ptr()) - addr + inner * tensor.element_size()
        is_page &= tensor.shape[0] == num_blocks and end <= page_bytes
        is_page &= tensor.stride()[0] * tensor.element_size() == stride_bytes
    if not is_page:
        raise ValueError(
            f"the states of {layer} are not in pages of {page_bytes} bytes, one for each of the "
            f"{num_blocks} blocks"
        )
    return _Run(addr, page_bytes, stride_bytes)


def _inner(tensor: Any) -> Iterable[tuple[int, int]]:
    """Return size and stride of the dimensions of one block."""
    return zip(tensor.shape[1:], tensor.stride()[1:], strict=True)


def _runs_of_tokens(layer: str, tensor: Any, num_blocks: int) -> list[_Run]:
    shape, strides = tuple(tensor.shape), tuple(tensor.stride())
    item_bytes = tensor.element_size()
    # Where the attention kernel's blocks are smaller than vLLM's, a block is several in a row.
    in_a_row, odd = divmod(shape[0], num_blocks)
    if odd or not in_a_row:
        raise ValueError(
            f"the KV cache of {layer} has shape {shape}: its first dimension does not count its "
            f"{num_blocks} blocks"
        )
    # The innermost dense dimensions are a plain run of bytes; each index of the other dimensions
    # has a run of its own.
    page_bytes = item_bytes
    outer: list[tuple[int, int]] = []
    for stride, size in sorted(zip(strides[1:], shape[1:], strict=True)):
        if size == 1:
            continue
        if not outer and stride * item_bytes == page_bytes:
            page_bytes *= size
        else:
            outer.append((stride * item_bytes, size))
    stride_bytes = strides[0] * item_bytes
    if in_a_row > 1 and (outer or stride_bytes != page_bytes):
        raise ValueError(f"the KV cache of {layer} has blocks of {in_a_row} pieces with gaps")
    addrs = [int(tensor.data_ptr())]
    for outer_bytes, size in outer:
        addrs = [addr + index * outer_bytes for addr in addrs for index in range(size)]
    return [_Run(addr, page_bytes * in_a_row, stride_bytes * in_a_row) for addr in addrs]


def _merged(runs: list[_Run]) -> list[_Run]:
    """Merge runs whose blocks are adjacent, such as those of layers that share one tensor."""
    merged: list[_Run] = []
    for run in sorted(runs, key=lambda run: run.addr):
        last = merged[-1] if merged else None
        if (
            last is not None
            and last.stride_bytes == run.stride_bytes
            and last.page_bytes < last.stride_bytes
            and last.addr + last.page_bytes == run.addr
        ):
            last.page_bytes += run.page_bytes
            last.layers += run.layers
        else:
            merged.append(run)
    for run in merged:
        if run.page_bytes != run.stride_bytes:
            raise ValueError(
                f"a block of {', '.join(run.layers)} has {run.page_bytes} bytes every "
                f"{run.stride_bytes}: memory between blocks that belongs to no layer of the group "
                "cannot be moved with them"
            )
    return merged


def _parts_of(group: int, runs: list[_Run], num_blocks: int) -> list[Part]:
    by_size: dict[int, list[_Run]] = {}
    for run in runs:
        by_size.setdefault(run.page_bytes, []).append(run)
    return [
        Part(
            group=group,
            addrs=tuple(run.addr for run in same),
            num_blocks=num_blocks,
            block_bytes=block_bytes,
            layers=tuple(layer for run in same for layer in run.layers),
        )
        for block_bytes, same in sorted(by_size.items())
    ]
