"""Ends the hold of a cache's id when the program has dropped the cache."""

from __future__ import annotations

import sys
import weakref
from typing import TYPE_CHECKING, Final, final

from llm_datadist._types import Cache

if TYPE_CHECKING:
    from types import FrameType

    from llm_datadist._engine import Engine

__all__ = ["Holds"]

_OPERATION: Final = "deallocate_cache"
#: First parts of the names of modules that hold locks for which this library's threads wait.
_LOCKING: Final = ("llm_datadist._", "logging")


@final
class Holds:
    """Gives the program an object for each cache; when that object is gone, the id's hold ends.

    The registry has a Cache of its own for each cache, so that the program's is the only one that
    counts. Thread-safe.
    """

    def __init__(self, engine: Engine) -> None:
        self._check_open = engine.check_open
        self._registry = engine.registry
        self._links = engine.links

    def give_out(self, cache: Cache) -> Cache:
        """Return the object of a new cache for the program."""
        given = Cache(
            cache.cache_id,
            cache.cache_desc,
            tuple(cache.tensor_addrs),
            is_blocks_cache=cache.is_blocks_cache,
            owner=cache.owner,
        )
        # Once per object, and not at exit: `LLMDataDist.finalize` ends everything then.
        weakref.finalize(given, _drop, weakref.ref(self), cache).atexit = False
        return given

    def drop(self, cache: Cache) -> None:
        """End the hold of a cache's id, if there is one yet.

        It ends at once if this thread runs the program's code. The garbage collector may also run
        in code of this library, under any of its locks, or in a handler of log records, for whose
        lock the control thread may wait; then a worker ends it.
        """
        if _may_have_locks(sys._getframe(1)):
            self._links.call_later(0.0, lambda: self._deallocate(cache))
        else:
            self._deallocate(cache)

    def _deallocate(self, cache: Cache) -> None:
        try:
            self._check_open(_OPERATION)
        except RuntimeError:  # finalized, or a forked child, whose caches are the parent's
            return
        self._registry.deallocate(_OPERATION, cache)


def _drop(holds: weakref.ref[Holds], cache: Cache) -> None:
    owner = holds()
    if owner is not None:
        owner.drop(cache)


def _may_have_locks(frame: FrameType | None) -> bool:
    """Return whether a caller is a function of a module in `_LOCKING`, other than of this one."""
    while frame is not None:
        name = frame.f_globals.get("__name__")
        if isinstance(name, str) and name.startswith(_LOCKING) and name != __name__:
            return True
        frame = frame.f_back
    return False
