"""Which layouts can be turned into each other, and the rows that they have in common."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from llm_datadist._errors import invalid
from llm_datadist._plan.layouts.kv_layout import MAX_HEADS, KvLayout

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["check_match", "with_common_rows"]


def check_match(operation: str, src: KvLayout, dst: KvLayout, name: str = "") -> None:
    """Refuse two layouts between which rows cannot be moved.

    Args:
        operation: The call, for the text.
        src: Layout of the source.
        dst: Layout of the destination.
        name: Which of several peers, for the text.

    Raises:
        LLMException: LLM_PARAM_INVALID; the text has both values.
    """
    opaque = src.interior != "rows" or dst.interior != "rows"
    latent = src.is_latent and dst.is_latent
    compared = [
        ("data_type", src.data_type.name, dst.data_type.name),
        ("planes", src.planes, dst.planes),
        ("interior", src.interior, dst.interior),
        ("packing", src.packing, dst.packing),
    ]
    if latent:
        elements = "elements of a token (kv_heads x head_size)"
        compared.append(
            (elements, src.kv_heads * src.head_size, dst.kv_heads * dst.head_size),
        )
    else:
        compared.append(("kv_heads", src.kv_heads, dst.kv_heads))
        compared.append(("head_size", src.head_size, dst.head_size))
    if opaque:
        compared.append(("block_tokens", src.block_tokens, dst.block_tokens))
    for what, src_value, dst_value in compared:
        if src_value != dst_value:
            which = f" ({name})" if name else ""
            why = " of an opaque interior" if what == "block_tokens" else ""
            raise invalid(
                operation,
                f"{what}{why} is {src_value!r} at the source{which}, {dst_value!r} at the "
                "destination",
                "such bytes would have to be converted; use equal values on both sides",
            )


def with_common_rows(
    operation: str, layouts: Sequence[KvLayout], other: KvLayout
) -> tuple[list[KvLayout], KvLayout]:
    """Return latent layouts with rows of equal size; others as they are.

    Args:
        operation: The call, for the text.
        layouts: Layouts of one side; each has passed `check_match` with `other`.
        other: Layout of the other side.

    Raises:
        LLMException: LLM_PARAM_INVALID: a latent whose pieces are not contiguous.
    """
    sizes = {layout.head_size for layout in (*layouts, other)}
    if len(sizes) == 1:
        return list(layouts), other
    common = math.gcd(*sizes)
    divided = [_divided(operation, layout, common) for layout in (*layouts, other)]
    return divided[:-1], divided[-1]


def _divided(operation: str, layout: KvLayout, head_size: int) -> KvLayout:
    """Return a latent layout with its rows divided into rows of `head_size` elements."""
    pieces = layout.head_size // head_size
    if pieces == 1:
        return layout
    if len(layout.heads) > 1 and layout.strides.head != layout.row_bytes:
        raise invalid(
            operation,
            f"pieces of a latent have {layout.row_bytes} bytes at a distance of "
            f"{layout.strides.head}",
            f"use pieces of {head_size} elements on both sides",
        )
    if layout.kv_heads * pieces > MAX_HEADS:
        raise invalid(
            operation,
            f"a latent of {layout.kv_heads * layout.head_size} elements would be divided into rows "
            f"of {head_size}",
            "use pieces that have a larger common divisor",
        )
    return dataclasses.replace(
        layout,
        kv_heads=layout.kv_heads * pieces,
        heads=range(layout.heads.start * pieces, layout.heads.stop * pieces),
        head_size=head_size,
        strides=layout.strides._replace(head=head_size * layout.data_type.itemsize),
    )
