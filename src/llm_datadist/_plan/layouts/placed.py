"""A layout with addresses, and the tokens of a transfer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, final

import numpy as np

from llm_datadist._errors import invalid
from llm_datadist._plan.layouts.kv_layout import KvLayout
from llm_datadist._types.checks import (
    INT64_MAX,
    UINT64_MAX,
    check_instance,
    check_int,
    check_list_of_ints,
)
from llm_datadist._types.named_calls import names_calls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    U64: TypeAlias = NDArray[np.uint64]
    Blocks: TypeAlias = NDArray[np.int64]

__all__ = ["PlacedLayout", "Tokens", "check_reach"]


class Tokens(NamedTuple):
    """Tokens that are moved, as places in the two block lists.

    Attributes:
        num_tokens: How many.
        src_offset: Place of the first one: block src_offset // block_tokens of the source's list.
        dst_offset: The same in the destination's list.
    """

    num_tokens: int
    src_offset: int = 0
    dst_offset: int = 0


@names_calls
@final
@dataclass(frozen=True, slots=True, eq=False)
class PlacedLayout:
    """A layout, the addresses of its tensors, and the number of its blocks *(extension)*.

    Attributes:
        layout: What the cache holds.
        addrs: Address of each tensor, uint64, `layout.num_tensors` of them.
        num_blocks: Blocks of each tensor.

    Make it with `of`, which checks.
    """

    layout: KvLayout
    addrs: U64
    num_blocks: int

    @classmethod
    def of(cls, layout: KvLayout, addrs: Sequence[int] | U64, num_blocks: int) -> PlacedLayout:
        """Return a layout at addresses.

        Raises:
            TypeError: A wrong type.
            ValueError: Numbers outside their width, or a tensor that ends beyond the 64-bit
                address space.
            LLMException: LLM_PARAM_INVALID: another number of addresses than the layout has
                tensors, or strides by which rows of different blocks overlap.
        """
        check_instance("layout", layout, KvLayout).check_blocks(
            check_int("num_blocks", num_blocks, 1, INT64_MAX)
        )
        if not isinstance(addrs, np.ndarray) or addrs.dtype != np.uint64:
            addrs = check_list_of_ints("addrs", list(addrs))
        array = np.array(addrs, np.uint64)
        if array.shape != (layout.num_tensors,):
            raise invalid(
                "PlacedLayout",
                f"addrs has {array.size} addresses, the layout has {layout.num_tensors} tensors",
                "give the address of each tensor",
            )
        size = layout.tensor_bytes(num_blocks)
        if int(array.max()) + size > UINT64_MAX:
            raise ValueError(
                f"{size} bytes at address {int(array.max()):#x} wrap the 64-bit address space"
            )
        return cls(layout, array, num_blocks)

    def with_layout(self, layout: KvLayout) -> PlacedLayout:
        """Return the same tensors under another layout of the same bytes *(internal)*."""
        return PlacedLayout(layout, self.addrs, self.num_blocks)

    def bases(self, layers: range, first_head: int, *, planes: bool, each_layer: bool) -> U64:
        """Return addresses of the first row, by layer and plane, flat.

        Args:
            layers: Layers, numbered over the model.
            first_head: Head, numbered over the model.
            planes: One address for each plane; else that of the first one.
            each_layer: One address for each layer; else that of the first one.
        """
        layout, strides = self.layout, self.layout.strides
        held = np.arange(len(layers) if each_layer else 1) + (layers.start - layout.layers.start)
        plane = np.arange(layout.planes if planes else 1)
        in_layer = np.zeros_like(plane) if strides.plane else plane
        tensor = (0 if strides.layer else held[:, None] * layout.tensors_per_layer) + in_layer
        offset = held[:, None] * strides.layer + plane * strides.plane
        offset = offset + (first_head - layout.heads.start) * strides.head
        return (self.addrs[tensor] + offset.astype(np.uint64)).ravel()


def check_reach(
    operation: str, name: str, blocks: Blocks, layout: KvLayout, offset: int, tokens: Tokens
) -> None:
    """Refuse a block list that is too short for the tokens from `offset` of it on.

    Raises:
        LLMException: LLM_PARAM_INVALID, with both numbers.
    """
    needed = -(-(offset + tokens.num_tokens) // layout.block_tokens) if tokens.num_tokens else 0
    if len(blocks) < needed:
        raise invalid(
            operation,
            f"{name} has {len(blocks)} blocks of {layout.block_tokens} tokens, {needed} are needed "
            f"for {tokens.num_tokens} tokens after the first {offset}",
            "give all blocks that hold the tokens",
        )
