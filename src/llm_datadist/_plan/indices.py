"""Checks of the indices that callers give: block lists, layer ranges.

They raise what the API promises for each kind of mistake.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from llm_datadist._errors import invalid
from llm_datadist._types.block_list import DLPACK_ERRORS
from llm_datadist._types.checks import INT64_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from llm_datadist._plan.layout import Layout
    from llm_datadist._types import BlockList

    BlocksArray: TypeAlias = NDArray[np.int64]

Blocks: TypeAlias = "tuple[int, ...] | NDArray[np.int64]"
"""Checked indices: up to `FEW` as a tuple, more as an array."""
Layers: TypeAlias = "tuple[range | None, range | None, int]"
"""Source layers, destination layers (None for all), tensors per layer."""

FEW = 8
"""Up to this many blocks plain Python is quicker than numpy's fixed costs."""

_I64 = np.dtype(np.int64)
_DEFAULT_TENSORS_PER_LAYER = 2
_MAX_EXPANDED = 1 << 28
"""A longer range is refused rather than expanded: it would take gigabytes."""


def copy_pairs(
    operation: str, copies: Mapping[int, BlockList], num_blocks: int
) -> tuple[BlocksArray, BlocksArray]:
    """Turn {block: [blocks to copy it onto]} into checked (sources, destinations) arrays.

    Raises:
        TypeError: A destination is not an integer.
        ValueError: A block index is negative.
        LLMException: LLM_PARAM_INVALID if an index is not below `num_blocks`.
    """
    name = "copy_block_info"
    keys = blocks_array(operation, name, list(copies), num_blocks)
    flat: list[int] = []
    for onto in copies.values():
        listed = (
            onto
            if isinstance(onto, list | tuple)
            else blocks_array(operation, name, onto, num_blocks).tolist()
        )
        flat += listed
    destinations = blocks_array(operation, name, flat, num_blocks)
    return np.repeat(keys, [len(onto) for onto in copies.values()]), destinations


def blocks_array(
    operation: str,
    name: str,
    blocks: BlockList,
    num_blocks: int | None,
    *,
    unique: bool = False,
    highest: int = INT64_MAX,
) -> BlocksArray:
    """Check a list of block indices and return it as an int64 array; see `checked_blocks`."""
    found = checked_blocks(operation, name, blocks, num_blocks, unique=unique, highest=highest)
    return np.asarray(found, _I64)


def checked_blocks(
    operation: str,
    name: str,
    blocks: BlockList,
    num_blocks: int | None,
    *,
    unique: bool = False,
    highest: int = INT64_MAX,
) -> Blocks:
    """Check a list of block indices; return a tuple of up to `FEW`, or an int64 array of more.

    Args:
        operation: API call on whose behalf the check is made.
        name: Name of the argument, for messages.
        blocks: Block indices: a list, tuple or range, or a one-dimensional array of integers in
            host memory (numpy, torch, or another with `__dlpack__`).
        num_blocks: Every index must be below it; None if the limit is unknown.
        unique: No index may occur twice (destinations).
        highest: Greatest index that the call can carry.

    Raises:
        TypeError: Something else, or an element is not an integer (bool is none).
        ValueError: An index is negative, or above `highest`.
        LLMException: LLM_PARAM_INVALID if an index is not below `num_blocks`, or repeated.
    """
    found: Blocks
    if not isinstance(blocks, (list, tuple)):
        found = _from_array(operation, name, blocks, num_blocks, unique=unique, highest=highest)
        return found if len(found) > FEW else tuple(found.tolist())
    most = highest if num_blocks is None else num_blocks - 1
    if len(blocks) == 1 and type(block := blocks[0]) is int and 0 <= block <= most:
        return (block,)
    listed = tuple(blocks)  # another thread may change a list
    if not set(map(type, listed)) <= {int}:
        listed = tuple(_index(name, place, block) for place, block in enumerate(listed))
    if len(listed) > FEW:
        found, is_inside = _listed_array(listed, most)
    else:
        found, is_inside = listed, not listed or (min(listed) >= 0 and max(listed) <= most)
    if not is_inside:
        raise _out_of_range(operation, name, listed, num_blocks, highest)
    if unique and len(set(listed)) != len(listed):
        raise _repeated(operation, name, listed)
    return found


def _listed_array(listed: tuple[int, ...], most: int) -> tuple[BlocksArray, bool]:
    """Return integers as an array, and whether all are in [0, most]."""
    try:
        array = np.array(listed, _I64)
    except OverflowError:
        return np.empty(0, _I64), False
    return array, bool(array.min() >= 0 and array.max() <= most)


def _from_array(
    operation: str,
    name: str,
    blocks: BlockList,
    num_blocks: int | None,
    *,
    unique: bool,
    highest: int,
) -> BlocksArray:
    """Do what `checked_blocks` does for a range or an array, without a loop per element."""
    most = highest if num_blocks is None else num_blocks - 1
    if isinstance(blocks, range):
        first = _first_outside(blocks, most)
        if first is not None:
            raise _outside(operation, name, *first, num_blocks, highest)
        if blocks[_MAX_EXPANDED : _MAX_EXPANDED + 1]:  # `len` ends at 2**63
            remedy = f"give a range of at most {_MAX_EXPANDED} blocks"
            raise invalid(operation, f"{name} is {blocks}", remedy)
        return np.arange(blocks.start, blocks.stop, blocks.step, dtype=np.int64)
    found = _host_array(name, blocks)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise TypeError(
            f"{name} must be an array of integers with one dimension, got {found.ndim} dimensions "
            f"of {found.dtype}"
        )
    # Not checked where it is: another thread may change it. Great uint64 numbers become negative.
    array = np.array(found, _I64)
    if array.size and (array.min() < 0 or array.max() > most):
        listed = array.astype(found.dtype).tolist()
        raise _out_of_range(operation, name, listed, num_blocks, highest)
    if unique:
        ordered = np.sort(array)
        if (ordered[1:] == ordered[:-1]).any():
            raise _repeated(operation, name, array.tolist())
    return array


def _host_array(name: str, blocks: Any) -> NDArray[Any]:  # noqa: ANN401 - of any library
    if isinstance(blocks, np.ndarray):
        return blocks
    if not hasattr(type(blocks), "__dlpack__"):
        raise TypeError(
            f"{name} must be a list or tuple of int, a range or an array of int, "
            f"got {type(blocks).__name__}"
        )
    try:
        return np.from_dlpack(blocks)
    except DLPACK_ERRORS as error:
        raise TypeError(
            f"{name} cannot be read as an array ({error}); give integers in host memory"
        ) from error


def tensor_ranges(operation: str, layers: Layers, src: Layout, dst: Layout) -> tuple[range, range]:
    """Turn the two layer ranges of a call into ranges of tensors, one per side.

    Args:
        operation: API call on whose behalf the check is made.
        layers: Source and destination layers, and tensors per layer, in [0, 255].
        src: The source cache.
        dst: The destination cache.

    Raises:
        LLMException: LLM_PARAM_INVALID for ranges that are empty, stepped, beyond the last layer
            or unequal, tensor counts that differ while all layers are meant, or a
            `tensors_per_layer` that does not fit.
    """
    src_layers, dst_layers, tensors_per_layer = layers
    num_src, num_dst = len(src.starts), len(dst.starts)
    ranged = src_layers is not None or dst_layers is not None
    fits = 0 < tensors_per_layer <= num_src and tensors_per_layer <= num_dst
    if not fits and (ranged or tensors_per_layer != _DEFAULT_TENSORS_PER_LAYER):
        fewest = min(num_src, num_dst)
        raise invalid(
            operation,
            f"tensor_num_per_layer is {tensors_per_layer}",
            f"give 1 to {fewest}, the number of tensors",
        )
    if not ranged:
        if num_src != num_dst:
            raise invalid(
                operation,
                f"the source has {num_src} tensors, the destination {num_dst}",
                "use caches of equal num_tensors, or give layer ranges",
            )
        return src.all_tensors, dst.all_tensors
    src_tensors = _layer_tensors(operation, "src", src_layers, tensors_per_layer, num_src)
    dst_tensors = _layer_tensors(operation, "dst", dst_layers, tensors_per_layer, num_dst)
    if len(src_tensors) != len(dst_tensors):
        raise invalid(
            operation,
            f"src_layer_range has {len(src_tensors) // tensors_per_layer} layers, dst_layer_range "
            f"{len(dst_tensors) // tensors_per_layer} (None counts as all)",
            "give ranges of equal length",
        )
    return src_tensors, dst_tensors


def _layer_tensors(
    operation: str, side: str, layers: range | None, tensors_per_layer: int, num_tensors: int
) -> range:
    num_layers, rest = divmod(num_tensors, tensors_per_layer)
    if rest:
        raise invalid(
            operation,
            f"tensor_num_per_layer {tensors_per_layer} does not divide the {num_tensors} tensors "
            f"of the {side} cache",
            "give the number of tensors that one layer has",
        )
    if layers is None:
        return range(num_tensors)
    if layers.step != 1 or not 0 <= layers.start < layers.stop <= num_layers:
        raise invalid(
            operation,
            f"{side}_layer_range is {layers}, the cache has {num_layers} layers",
            "give a range of step 1, not empty, within them",
        )
    return range(layers.start * tensors_per_layer, layers.stop * tensors_per_layer)


def _index(name: str, place: int, block: object) -> int:
    if not isinstance(block, bool):
        try:
            return operator.index(block)  # type: ignore[arg-type]  # the check itself
        except TypeError:
            pass
    raise TypeError(f"{name}[{place}] must be int, got {type(block).__name__} ({block!r})")


def _out_of_range(
    operation: str, name: str, blocks: Sequence[int], num_blocks: int | None, highest: int
) -> Exception:
    for place, block in enumerate(blocks):
        if not 0 <= block <= highest:
            return _outside(operation, name, place, block, num_blocks, highest)
    assert num_blocks is not None
    place, block = next((at, block) for at, block in enumerate(blocks) if block >= num_blocks)
    return _outside(operation, name, place, block, num_blocks, highest)


def _outside(
    operation: str, name: str, place: int, block: int, num_blocks: int | None, highest: int
) -> Exception:
    """Return the exception for one index that is out of range."""
    if block < 0:
        return ValueError(f"{name}[{place}] must not be negative, got {block}; the first is 0")
    if block > highest or num_blocks is None:
        return ValueError(f"{name}[{place}] must be in [0, {highest}], got {block}")
    return invalid(
        operation,
        f"{name}[{place}] is {block}, the cache has {num_blocks} blocks",
        f"give indices below {num_blocks}",
    )


def _first_outside(blocks: range, most: int) -> tuple[int, int] | None:
    """Return place and value of the first index of a range that is not in [0, most], if any."""
    if not blocks:
        return None
    if not 0 <= blocks[0] <= most:
        return 0, blocks[0]
    if 0 <= blocks[-1] <= most:
        return None
    step = blocks.step
    place = (most - blocks[0]) // step + 1 if step > 0 else blocks[0] // -step + 1
    return place, blocks[place]


def _repeated(operation: str, name: str, blocks: Sequence[int]) -> Exception:
    seen: dict[int, int] = {}
    for place, block in enumerate(blocks):
        before = seen.setdefault(block, place)
        if before != place:
            problem = f"{name}[{place}] is {block} again, after {name}[{before}]"
            return invalid(operation, problem, "name each destination once")
    raise AssertionError("a repetition was found before")
