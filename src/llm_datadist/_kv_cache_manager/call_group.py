"""Base of the groups of calls that make up KvCacheManager."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_datadist._engine import Engine
    from llm_datadist._kv_cache_manager.roles import RoleRules


class Calls:
    """A group of calls; each checks its arguments and the role, and calls the engine.

    Args:
        engine: The engine of the instance.
        roles: What its present role allows.
    """

    def __init__(self, engine: Engine, roles: RoleRules) -> None:
        self._engine = engine
        self._registry = engine.registry
        self._roles = roles
