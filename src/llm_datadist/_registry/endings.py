"""Why names of caches are gone, for the texts of calls that still use them."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any, Final, TypeAlias, final

from llm_datadist._registry.records import CONSUMED, DEALLOCATED, REMOVED, UNREGISTERED, key_name
from llm_datadist._types import BlocksCacheKey, CacheKey
from llm_datadist._types.keys import UNUSED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_datadist._registry.records import KeyName
    from llm_datadist._types import AnyKey

__all__ = ["Endings", "absent", "consumed"]

#: What a key names in its owner's tables: the numbers of a CacheKey, the model_id of a
#: BlocksCacheKey, a cache id.
Name: TypeAlias = "tuple[str, KeyName | int]"

_MAX_REMEMBERED: Final = 1024
_MAX_LISTED: Final = 8
#: Noun and number of each kind of name.
_KINDS: Final = {
    "key": ("CacheKeys", "with req_id "),
    "blocks": ("BlocksCacheKeys", "with model_id "),
    "id": ("caches", ""),
}
_WORDS: Final = {
    CONSUMED: "a pull has consumed it",
    REMOVED: "its owner has removed it",
    UNREGISTERED: "{cache} was unregistered",
    DEALLOCATED: "{cache} was deallocated",
}


def name_of(key: AnyKey) -> Name:
    """Return what a key names."""
    if isinstance(key, CacheKey):
        return "key", key_name(key)
    if isinstance(key, BlocksCacheKey):
        return "blocks", key.model_id
    return "id", key.cache_id


@final
class Endings:
    """Why the last names that ended did: at most 1,024 of them. Not thread-safe to change."""

    def __init__(self) -> None:
        self._reasons: dict[Name, int] = {}

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, name: Name, reason: int) -> None:
        """Note why a name ended; forget the oldest one if there are too many."""
        self._reasons.pop(name, None)
        if len(self._reasons) >= _MAX_REMEMBERED:
            del self._reasons[next(iter(self._reasons))]
        self._reasons[name] = reason

    def forget(self, name: Name) -> None:
        """Note that a name is in use again."""
        self._reasons.pop(name, None)

    def why(self, name: Name) -> str:
        """Return why a name ended, "" if that is not known."""
        words = _WORDS.get(self._reasons.get(name, 0), "")
        return words.format(cache="it" if name[0] == "id" else "its cache")


def absent(key: AnyKey, endings: Endings, known: Iterable[KeyName | int]) -> tuple[str, str]:
    """Return problem and remedy where a key names no cache of a peer.

    Args:
        key: The key.
        endings: Of the peer.
        known: The names of that kind that the peer has.
    """
    kind, _ = name = name_of(key)
    if why := endings.why(name):
        return _gone(key, why)
    names: list[Any] = list(known)
    few = ", ".join(map(_shown, heapq.nsmallest(_MAX_LISTED, names)))
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    noun, number = _KINDS[kind]
    has = f"it has {noun} {number}{few}{more}" if names else f"it has no {noun}"
    problem = f"the peer has no cache under {key}; {has}"
    return problem, "correct the key, or register the cache at the peer first"


def consumed(key: AnyKey) -> tuple[str, str]:
    """Return problem and remedy where a key was consumed, and its owner has not noticed yet."""
    return _gone(key, _WORDS[CONSUMED])


def _gone(key: AnyKey, why: str) -> tuple[str, str]:
    return f"the peer has no cache under {key} any more: {why}", "recompute"


def _shown(name: KeyName | int) -> str:
    if isinstance(name, int):
        return str(name)
    req_id, model_id, prefix_id = name
    others = [f"model_id {model_id}"] if model_id else []
    if prefix_id != UNUSED:
        others.append(f"prefix_id {prefix_id}")
    return f"{req_id} ({', '.join(others)})" if others else str(req_id)
