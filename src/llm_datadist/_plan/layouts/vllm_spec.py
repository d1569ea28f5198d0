"""Layouts from vLLM's KV cache specs. Only attributes are read; vLLM is not imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_datadist._errors import LLMException, invalid
from llm_datadist._plan.layouts.build import NAMED_AXES, dense, heads_of_rank, of_tensor
from llm_datadist._types import DataType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_datadist._plan.layouts.kv_layout import KvLayout

__all__ = ["of_vllm_spec"]

_ATTENTION_AXES = ("block", "plane", "token", "head", "element")
_LATENT_AXES = ("block", "token", "element")
_OPERATION = "of_vllm_spec"
_TYPES = {
    "float32": DataType.DT_FLOAT,
    "float16": DataType.DT_FLOAT16,
    "half": DataType.DT_FLOAT16,
    "bfloat16": DataType.DT_BF16,
    "int8": DataType.DT_INT8,
    "uint8": DataType.DT_UINT8,
    # No DataType of its own: these are moved as bytes.
    "float8_e4m3fn": DataType.DT_UINT8,
    "float8_e5m2": DataType.DT_UINT8,
}


def of_vllm_spec(
    spec: Any,  # noqa: ANN401 - vLLM's object; no types without vLLM
    *,
    layers: range,
    tp_size: int = 1,
    tp_rank: int = 0,
    kv_heads: int | None = None,
    axes: str | Sequence[str] | None = None,
    shape: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    packing: str = "",
) -> KvLayout:
    """Return the layout of the cache of a vLLM worker *(extension)*.

    Args:
        spec: A KV cache spec of vLLM: FullAttentionSpec, SlidingWindowSpec, MLAAttentionSpec,
            MambaSpec or one with the same attributes.
        layers: The layers of the cache, numbered over the whole model.
        tp_size: Tensor-parallel ranks.
        tp_rank: The worker's.
        kv_heads: KV heads of the whole model; None = those of the spec times `tp_size`. Must be
            given if ranks share heads (`tp_size` is more).
        axes: Axes of a layer's tensor, as in `dense`; None = block, plane, token, head, element, or
            block, token, element for a latent.
        shape: Of a layer's tensor, as torch's `shape`; None = no gaps but the padding of the spec.
        strides: Of a layer's tensor, as torch's `stride()`; given with `shape`.
        packing: Name of the order in which an attention kernel packs the tokens of one head (CPU
            attention, for example): they are moved as they are. Empty = plain rows. For a state
            (MambaSpec) the default is "state".

    Raises:
        TypeError, ValueError, LLMException: As KvLayout; LLM_PARAM_INVALID also for a spec that has
            other attributes or a type that is not known.
    """
    is_state = hasattr(spec, "shapes")
    try:
        block_tokens = int(spec.block_size)
        if is_state:
            page_bytes = int(spec.page_size_bytes)
        else:
            head_size, held = int(spec.head_size), int(spec.num_kv_heads)
            data_type = _data_type(spec.dtype)
    except (AttributeError, TypeError) as error:
        raise _unknown(spec, str(error)) from error
    if is_state:
        return _of_state(page_bytes, layers, tp_size, tp_rank, block_tokens, packing or "state")
    if int(getattr(spec, "head_size_v", None) or head_size) != head_size:
        raise _unknown(spec, f"head_size is {head_size}, head_size_v {spec.head_size_v}")
    latent = "MLA" in type(spec).__name__ or bool(getattr(spec, "use_mla", False))
    total = kv_heads or (held if latent else held * tp_size)
    heads = range(total) if latent else heads_of_rank(total, tp_size, tp_rank)
    if len(heads) != held:
        raise invalid(
            _OPERATION,
            f"the spec has num_kv_heads {held}, rank {tp_rank} of {tp_size} holds {len(heads)} of "
            f"{total}",
            "give kv_heads of the whole model, and the spec of this rank",
        )
    planes = 1 if latent else 2
    named = axes or (_LATENT_AXES if latent else _ATTENTION_AXES)
    if isinstance(named, str):
        named = NAMED_AXES.get(named, named)
    if shape is not None and strides is not None and not packing:
        return of_tensor(
            named, shape, strides, layers=layers, kv_heads=total, heads=heads,
            data_type=data_type, planes=planes,
        )  # fmt: skip
    padded = getattr(spec, "page_size_padded", None)
    return dense(
        _packed(named) if packing else named,
        layers=layers,
        kv_heads=total,
        heads=heads,
        head_size=head_size,
        data_type=data_type,
        block_tokens=block_tokens,
        planes=planes,
        num_blocks=_num_blocks(named, shape),
        block_bytes=int(padded) if padded and named[0] == "block" else None,
        interior="opaque heads" if packing else "rows",
        packing=packing,
    )


def _of_state(
    page_bytes: int,
    layers: range,
    tp_size: int,
    tp_rank: int,
    block_tokens: int,
    packing: str,
) -> KvLayout:
    """Return the layout of a state model's cache: blocks of bytes, one shard per rank."""
    return dense(
        ("block", "element"),
        layers=layers,
        kv_heads=tp_size,
        heads=range(tp_rank, tp_rank + 1),
        head_size=page_bytes,
        data_type=DataType.DT_INT8,
        block_tokens=block_tokens,
        planes=1,
        interior="opaque blocks",
        packing=packing,
    )


def _packed(axes: str | Sequence[str]) -> str | tuple[str, ...]:
    """Return the axes of a tensor whose tokens are packed within each head."""
    return axes if isinstance(axes, str) else tuple(name for name in axes if name != "token")


def _num_blocks(axes: str | Sequence[str], shape: Sequence[int] | None) -> int | None:
    if shape is None or "block" not in axes:
        return None
    if len(shape) != len(axes):
        raise invalid(
            _OPERATION,
            f"shape is {tuple(shape)}, the axes are {tuple(axes)}",
            "give the size of each axis",
        )
    return int(shape[list(axes).index("block")])


def _data_type(dtype: object) -> DataType:
    name = str(dtype).rpartition(".")[2]
    found = _TYPES.get(name)
    if found is None:
        raise invalid(
            _OPERATION, f"the spec has dtype {dtype}", f"use one of {', '.join(sorted(_TYPES))}"
        )
    return found


def _unknown(spec: object, problem: str) -> LLMException:
    return invalid(
        _OPERATION,
        f"{type(spec).__name__} is no KV cache spec that can be moved: {problem}",
        "make the KvLayout by hand",
    )
