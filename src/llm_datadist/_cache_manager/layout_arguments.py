"""Checks of arguments about layouts, whose modules are imported when a call needs them.

`import llm_datadist` would be slow otherwise; tests/unit/test_imports.py checks it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_datadist._types.checks import check_instance

if TYPE_CHECKING:
    from llm_datadist._plan.layouts import KvLayout, Tokens
    from llm_datadist._types import CacheDesc

__all__ = ["check_layout", "check_layouts", "check_tokens"]


def check_layout(operation: str, layout: object, cache_desc: CacheDesc) -> KvLayout | None:
    """Return the layout argument of a call that makes a blocks cache; None for None."""
    if layout is None:
        return None
    from llm_datadist._plan import layouts  # noqa: PLC0415

    return layouts.check_layout(operation, layout, cache_desc)


def check_layouts(name: str, value: object) -> tuple[KvLayout, ...]:
    """Return an argument that is a list or tuple of layouts.

    Raises:
        TypeError: It is not.
    """
    from llm_datadist._plan import layouts  # noqa: PLC0415

    given = check_instance(name, value, list, tuple)
    return tuple(
        check_instance(f"{name}[{place}]", each, layouts.KvLayout)
        for place, each in enumerate(given)
    )


def check_tokens(num_tokens: object, src_offset: object, dst_offset: object) -> Tokens:
    """Return the token arguments of a call."""
    from llm_datadist._plan import layouts  # noqa: PLC0415

    return layouts.check_tokens(num_tokens, src_offset, dst_offset)
