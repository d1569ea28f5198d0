"""What all groups of calls of CacheManager have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_datadist._engine import Engine


class Calls:
    """The calls of one instance; each checks its arguments and hands the work to the engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._registry = engine.registry
        self._transfers = engine.transfers
