"""Imports what only instances need, so that `import llm_datadist` is short."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_datadist._domains import Domains
    from llm_datadist._engine import Engine
    from llm_datadist._options.settings import Config

__all__ = ["Parts", "load_parts"]


class Parts(NamedTuple):
    """The functions and classes from which `LLMDataDist` makes an instance."""

    check_not_patched: Callable[[], None]
    parse_options: Callable[[dict[str, str]], Config]
    parse_switch_options: Callable[[Config, dict[str, str], int | None], list[tuple[str, int]]]
    engine: type[Engine]
    domains: type[Domains]


@functools.cache
def load_parts() -> Parts:
    """Import the parts; called when the first instance is made."""
    from llm_datadist._control.patched import check_not_patched  # noqa: PLC0415
    from llm_datadist._domains import Domains  # noqa: PLC0415
    from llm_datadist._engine import Engine  # noqa: PLC0415
    from llm_datadist._options import parse  # noqa: PLC0415

    return Parts(
        check_not_patched, parse.parse_options, parse.parse_switch_options, Engine, Domains
    )
