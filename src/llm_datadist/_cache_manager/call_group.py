"""Base of the groups of calls that make up CacheManager."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_datadist._engine import Engine


class Calls:
    """A group of calls; each checks its arguments and calls the engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._registry = engine.registry
        self._transfers = engine.transfers
