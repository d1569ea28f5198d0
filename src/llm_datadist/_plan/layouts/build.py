"""Layouts from named axes: dense ones, and those of a tensor with any strides."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from llm_datadist._errors import invalid
from llm_datadist._plan.layouts.kv_layout import INTERIORS, Interior, KvLayout, Strides
from llm_datadist._types import DataType
from llm_datadist._types.checks import (
    INT64_MAX,
    check_instance,
    check_int,
    check_list_of_ints,
    check_range,
    wrong_type,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["HND_AXES", "NAMED_AXES", "NHD_AXES", "dense", "heads_of_rank", "of_tensor"]

Axes: TypeAlias = "str | Sequence[str]"

NHD_AXES = ("block", "token", "head", "element")
HND_AXES = ("block", "head", "token", "element")
NAMED_AXES = {"NHD": NHD_AXES, "HND": HND_AXES}
_AXES = ("layer", "plane", "block", "token", "head", "element")


def heads_of_rank(kv_heads: int, tp_size: int, tp_rank: int) -> range:
    """Return the KV heads that a tensor-parallel rank holds *(extension)*.

    With more ranks than heads, neighboring ranks hold the same head.

    Args:
        kv_heads: KV heads of the model.
        tp_size: Ranks.
        tp_rank: The rank, from 0.

    Raises:
        TypeError: A wrong type.
        ValueError: A rank outside `tp_size`, or a number below 1.
        LLMException: LLM_PARAM_INVALID: neither number divides the other.
    """
    check_int("kv_heads", kv_heads, 1)
    check_int("tp_size", tp_size, 1)
    check_int("tp_rank", tp_rank, 0, tp_size - 1)
    if kv_heads % tp_size and tp_size % kv_heads:
        raise invalid(
            "heads_of_rank",
            f"kv_heads is {kv_heads}, tp_size {tp_size}",
            "one must divide the other",
        )
    if tp_size >= kv_heads:
        head = tp_rank // (tp_size // kv_heads)
        return range(head, head + 1)
    held = kv_heads // tp_size
    return range(tp_rank * held, (tp_rank + 1) * held)


def dense(
    axes: Axes,
    *,
    layers: range,
    kv_heads: int,
    heads: range,
    head_size: int,
    data_type: DataType,
    block_tokens: int,
    planes: int = 2,
    num_blocks: int | None = None,
    block_bytes: int | None = None,
    interior: Interior = "rows",
    packing: str = "",
) -> KvLayout:
    """Return the layout of tensors without gaps *(extension)*.

    The other arguments are those of `KvLayout`.

    Args:
        axes: "NHD", "HND", or names of the axes from the outermost one on: "block", "token" (not in
            an opaque interior), "head", "element" last, and, where one tensor has several, "plane"
            and "layer". K and V without a "plane" have a tensor each.
        num_blocks: Blocks of a tensor; needed if an axis is outside of "block".
        block_bytes: From a block to the next, if that is more than its contents (padding).

    Raises:
        TypeError, ValueError, LLMException: As KvLayout; LLM_PARAM_INVALID also for axes that are
            missing or that do not exist.
    """
    span, head_span = check_range("layers", layers), check_range("heads", heads)
    itemsize = check_instance("data_type", data_type, DataType).itemsize
    opaque_heads = interior == "opaque heads"
    counts = {
        "layer": len(span),
        "plane": check_int("planes", planes, 1),
        "token": check_int("block_tokens", block_tokens, 1),
        "head": len(head_span),
        "element": check_int("head_size", head_size, 1) * (block_tokens if opaque_heads else 1),
    }
    if num_blocks is not None:
        counts["block"] = check_int("num_blocks", num_blocks, 1)
    names = _checked_axes("dense", axes, interior)
    strides: dict[str, int] = {}
    reached = itemsize
    for name in reversed(names):
        strides[name] = reached
        if name == "block" and block_bytes is not None:
            strides[name] = reached = check_int("block_bytes", block_bytes, reached)
        if name == names[0]:
            break
        if name not in counts:
            raise invalid(
                "dense", f"{names[0]!r} is outside of 'block'", "give num_blocks with such axes"
            )
        reached *= counts[name]
    return KvLayout(
        layers, kv_heads, heads, head_size, data_type, block_tokens,
        _strides(strides, counts), planes, interior, packing,
    )  # fmt: skip


def of_tensor(
    axes: Axes,
    shape: Sequence[int],
    strides: Sequence[int],
    *,
    layers: range,
    kv_heads: int,
    heads: range,
    data_type: DataType,
    planes: int = 2,
) -> KvLayout:
    """Return the layout of one of a cache's tensors, by its shape and strides *(extension)*.

    The other arguments are those of `KvLayout`.

    Args:
        axes: Names of the tensor's axes, as in `dense`; in any order, "element" too, which must
            have stride 1. Tokens of a block and elements of a head are read from the shape.
        shape: Indices of each axis. An axis "head" must have as many as `heads`, "plane" as many as
            `planes`, "layer" as many as `layers`.
        strides: Elements (as torch.Tensor.stride gives them) from an index to the next one.

    Raises:
        TypeError, ValueError, LLMException: As KvLayout; LLM_PARAM_INVALID also for axes and shapes
            that do not fit; the text has both numbers.
    """
    operation = "of_tensor"
    names = _checked_axes(operation, axes, "rows")
    sizes = check_list_of_ints("shape", _plain(shape), 1, INT64_MAX)
    steps = check_list_of_ints("strides", _plain(strides), 0, INT64_MAX)
    if not len(names) == len(sizes) == len(steps):
        raise invalid(
            operation,
            f"{len(names)} axes, {len(sizes)} sizes in shape and {len(steps)} strides",
            "give one of each for every axis of the tensor",
        )
    counts = dict(zip(names, sizes, strict=True))
    wanted = {"head": len(heads), "plane": planes, "layer": len(layers)}
    for name, count in wanted.items():
        if counts.get(name, count) != count:
            raise invalid(
                operation,
                f"shape has {counts[name]} at axis {name!r}, {count} are held",
                "give the shape of this rank's tensor",
            )
    step = dict(zip(names, steps, strict=True))
    if step["element"] != 1 and counts["element"] > 1:
        raise invalid(
            operation,
            f"the elements of a head have stride {step['element']}",
            "describe such a tensor as opaque heads, which move as they are",
        )
    itemsize = check_instance("data_type", data_type, DataType).itemsize
    in_bytes = {name: value * itemsize for name, value in step.items()}
    return KvLayout(
        layers, kv_heads, heads, counts["element"], data_type, counts["token"],
        _strides(in_bytes, counts), planes,
    )  # fmt: skip


def _plain(values: Sequence[int]) -> list[int]:
    return list(values)


def _strides(strides: dict[str, int], counts: dict[str, int]) -> Strides:
    """Return strides in bytes; those of axes with one index that stay inside a block are 0."""

    def along(name: str) -> int:
        return strides.get(name, 0) if counts.get(name, 1) > 1 else 0

    return Strides(
        block=strides["block"],
        token=along("token"),
        head=along("head"),
        plane=along("plane"),
        layer=strides.get("layer", 0),
    )


def _checked_axes(operation: str, axes: object, interior: Interior) -> tuple[str, ...]:
    if isinstance(axes, str):
        names = NAMED_AXES.get(axes)
        if names is None:
            raise invalid(operation, f"axes is {axes!r}", 'give "NHD", "HND" or a tuple of names')
    elif isinstance(axes, list | tuple):
        names = tuple(axes)
    else:
        raise wrong_type("axes", axes, "str or tuple of str")
    if interior not in INTERIORS:
        raise ValueError(f"interior must be one of {INTERIORS}, got {interior!r}")
    needed = {"block", "element"} | ({"token"} if interior == "rows" else set())
    allowed = set(_AXES) if interior == "rows" else set(_AXES) - {"token"}
    if not needed <= set(names) <= allowed or len(set(names)) != len(names):
        raise invalid(
            operation,
            f"axes is {names} with interior {interior!r}",
            f"name each of {sorted(needed)} once, and others of {sorted(allowed)}",
        )
    return names
