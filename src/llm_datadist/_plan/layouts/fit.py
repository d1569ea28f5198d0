"""Whether a layout fits the description of the cache that it is about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_datadist._errors import invalid
from llm_datadist._plan.layouts.kv_layout import KvLayout
from llm_datadist._types.checks import check_instance

if TYPE_CHECKING:
    from llm_datadist._types import CacheDesc

__all__ = ["check_fit", "check_layout"]


def check_fit(layout: KvLayout, desc: CacheDesc, operation: str = "KvLayout") -> None:
    """Refuse a layout that does not fit a blocks cache *(extension)*.

    Every row of the layout then lies in the block, and the tensor, that it belongs to.

    Args:
        layout: The layout.
        desc: Description of the blocks cache; dimension 0 counts blocks. Its type is the layout's,
            or one of one byte for a cache that is registered as plain bytes.
        operation: The call, for the text.

    Raises:
        LLMException: LLM_PARAM_INVALID; the text names the number that is off, with both values.
    """
    desc.check_usable(operation)
    for name, axis in (("plane", layout.planes), ("layer", len(layout.layers))):
        stride = getattr(layout.strides, name)
        if axis > 1 and stride >= layout.strides.block:
            raise invalid(
                operation,
                f"layout.strides.{name} is {stride}, layout.strides.block {layout.strides.block}: "
                "dimension 0 of a blocks cache counts blocks",
                f"register each {name} as a tensor of its own, with its own address",
            )
    if desc.num_tensors != layout.num_tensors:
        raise invalid(
            operation,
            f"cache_desc.num_tensors is {desc.num_tensors}, the layout has {layout.num_tensors} "
            f"({len(layout.layers)} layers, {layout.tensors_per_layer} tensors per layer)",
            "describe the layers and planes that the cache holds",
        )
    itemsize = desc.data_type.itemsize
    if desc.data_type is not layout.data_type and itemsize != 1:
        raise invalid(
            operation,
            f"cache_desc.data_type is {desc.data_type.name}, layout.data_type "
            f"{layout.data_type.name}",
            "use one type, or register the cache as bytes (DT_INT8)",
        )
    if desc.block_bytes != layout.strides.block:
        raise invalid(
            operation,
            f"a block of the cache has {desc.block_bytes} bytes, layout.strides.block is "
            f"{layout.strides.block}",
            "give the layout of the tensors as they are registered",
        )
    layout.check_blocks(desc.num_blocks)


def check_layout(operation: str, layout: object, cache_desc: CacheDesc) -> KvLayout | None:
    """Return the layout argument of a call that makes a blocks cache; None for None.

    Raises:
        TypeError, LLMException: Neither None nor a KvLayout; as `check_fit`.
    """
    if layout is None:
        return None
    checked = check_instance("layout", layout, KvLayout)
    check_fit(checked, cache_desc, operation)
    return checked
