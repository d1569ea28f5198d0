"""Checks of the tensor addresses that a caller gives for a cache.

Source: api.md 5.2, 5.4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_datadist._errors import invalid
from llm_datadist._types.checks import UINT64_MAX, check_list_of_ints

if TYPE_CHECKING:
    from llm_datadist._types.desc import CacheDesc

__all__ = ["check_addrs"]


def check_addrs(operation: str, desc: CacheDesc, addrs: object) -> tuple[int, ...]:
    """Return the addresses of a cache's tensors, checked against its description.

    Args:
        operation: Named in the text of an LLMException.
        desc: Description, usable (`CacheDesc.check_usable`).
        addrs: What the caller gave: a list or tuple of int.

    Raises:
        AttributeError: addrs is None.
        TypeError: Not a list or tuple of int.
        ValueError: An address is outside uint64, or its tensor would wrap the address space.
        LLMException: LLM_PARAM_INVALID: an address is 0, or there are not num_tensors of them.
    """
    if addrs is None:
        raise AttributeError("addrs is None; give a list with the address of each tensor")
    checked = check_list_of_ints("addrs", addrs)
    if len(checked) != desc.num_tensors:
        raise invalid(
            operation,
            f"{len(checked)} addrs for {desc.num_tensors} tensors (num_tensors of cache_desc)",
            "give one address per tensor",
        )
    if 0 in checked:
        raise invalid(
            operation, f"addrs[{checked.index(0)}] is 0", "give the address of memory that exists"
        )
    highest = max(checked)
    if highest + desc.tensor_bytes > UINT64_MAX:
        raise ValueError(
            f"addrs[{checked.index(highest)}] {highest:#x} plus the {desc.tensor_bytes} bytes of a "
            "tensor wraps the address space"
        )
    return tuple(checked)
