"""The caches of a node, by name."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, final

from llm_datadist._types import Cache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_datadist._cache_manager import CacheManager
    from llm_datadist._datadist import LLMDataDist
    from llm_datadist._types import BlocksCacheKey

__all__ = ["NamedCaches", "live_manager"]


def live_manager(instance: LLMDataDist, operation: str) -> CacheManager:
    """Return the cache manager of a node's instance.

    Raises:
        RuntimeError: The node is closed.
    """
    try:
        return instance.cache_manager
    except RuntimeError as error:
        raise RuntimeError(f"{operation}: the node is closed; make another one") from error


@final
class NamedCaches:
    """Registers and finds the caches of one node. Thread-safe."""

    def __init__(self) -> None:
        self._caches: dict[str, Cache] = {}
        self._lock = threading.Lock()  # of a name, from when it is free until it is taken

    def register(
        self, manager: CacheManager, key: BlocksCacheKey, name: str, tensors: Sequence[object]
    ) -> Cache:
        """Register tensors under a name that is free."""
        with self._lock:
            if name in self._caches:
                raise KeyError(f"register: a cache {name!r} exists; unregister it first")
            cache = manager.register_tensors(tensors, key)
            self._caches[name] = cache
            return cache

    def remove(self, name: str) -> Cache:
        """Forget a name, and return its cache."""
        with self._lock:
            cache = self.find(name)
            del self._caches[name]
            return cache

    def find(self, cache: str | Cache) -> Cache:
        """Return the cache of a name, or the cache itself."""
        if isinstance(cache, Cache):
            return cache
        try:
            return self._caches[cache]
        except KeyError:
            names = ", ".join(map(repr, list(self._caches))) or "none"
            raise KeyError(
                f"no local cache is called {cache!r} (there are: {names}); Node.register makes "
                "one, and into (of pull) or source (of push) selects one of another name"
            ) from None
