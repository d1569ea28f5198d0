"""Keys: values that name a cache, or a slot of one.

On the owner of the cache a key's cluster_id is its own id; on the user of the key it selects the
link.

Source: api.md 1, 5.3.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, TypeAlias, final, overload

from llm_datadist._errors import invalid
from llm_datadist._types.checks import UINT32_MAX, UINT64_MAX, check_int

__all__ = ["UNUSED", "BlocksCacheKey", "CacheKey", "CacheKeyByIdAndIndex"]

#: A req_id of this marks an unused slot in a list of keys; a prefix_id of it means no prefix.
UNUSED: Final = UINT64_MAX

_REQUIRED: Any = type("_Required", (), {"__repr__": lambda _: "<required>"})()


def _field(kind: str, name: str, value: object, high: int = UINT64_MAX) -> int:
    """Return a field of a key, checked; a required one that was left out is refused."""
    if type(value) is int and 0 <= value <= high:
        return value
    if value is _REQUIRED:
        raise invalid(kind, f"{name} is required", f"give {name}, an integer in [0, 2**64)")
    try:
        return check_int(name, value, 0, high)
    except TypeError as error:
        raise TypeError(f"{error}: {kind}.{name} only supports int") from None


def _cluster_id(kind: str, cluster_id: int, others: dict[str, int], *, alias: bool = True) -> int:
    """Return the cluster id that was given by either of its names, and refuse other keywords."""
    if alias and "prompt_cluster_id" in others:
        if cluster_id is not _REQUIRED:
            problem = "cluster_id and prompt_cluster_id are the same field and both given"
            raise invalid(kind, problem, "give one of them")
        cluster_id = others.pop("prompt_cluster_id")
    if others:
        raise invalid(kind, f"Unsupported keyword {', '.join(others)}", f"see the fields of {kind}")
    return cluster_id


class _Key:
    """Base of keys: equal, hashed and printed by their fields."""

    __slots__ = ("_cluster_id",)
    _fields: ClassVar[tuple[str, ...]]
    _cluster_id: int

    @property
    def cluster_id(self) -> int:
        """Owner of the cache."""
        return self._cluster_id

    def _values(self) -> tuple[int, ...]:
        return tuple(getattr(self, name) for name in self._fields)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, _Key) and type(other) is type(self):
            return self._values() == other._values()
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        fields = zip(self._fields, self._values(), strict=True)
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in fields)})"


@final
class CacheKey(_Key):
    """Names one slot of a contiguous cache.

    Args:
        cluster_id: Owner of the cache, uint64; `prompt_cluster_id` is another name for it.
        req_id: Request, uint64; 2**64-1 marks an unused slot in a list of keys.
        model_id: Model, uint64.
        prefix_id: Shared prefix, uint64; 2**64-1 means none.

    Raises:
        TypeError: A field is not an integer.
        ValueError: A field is outside uint64.
        LLMException: LLM_PARAM_INVALID: cluster_id or req_id is missing, or a keyword is unknown.
    Source: api.md 5.3. Immutable, hashable, equal by value.
    """

    __slots__ = ("_model_id", "_prefix_id", "_req_id")
    _fields = ("cluster_id", "req_id", "model_id", "prefix_id")

    @overload
    def __init__(
        self, cluster_id: int, req_id: int, model_id: int = ..., prefix_id: int = ...
    ) -> None: ...
    @overload
    def __init__(
        self, *, prompt_cluster_id: int, req_id: int, model_id: int = ..., prefix_id: int = ...
    ) -> None: ...
    def __init__(
        self,
        cluster_id: int = _REQUIRED,
        req_id: int = _REQUIRED,
        model_id: int = 0,
        prefix_id: int = UNUSED,
        **kwargs: int,
    ) -> None:
        if kwargs:
            cluster_id = _cluster_id("CacheKey", cluster_id, kwargs)
        self._cluster_id = _field("CacheKey", "cluster_id", cluster_id)
        self._req_id = _field("CacheKey", "req_id", req_id)
        self._model_id = _field("CacheKey", "model_id", model_id)
        self._prefix_id = _field("CacheKey", "prefix_id", prefix_id)

    @property
    def prompt_cluster_id(self) -> int:
        """The same as cluster_id."""
        return self._cluster_id

    @property
    def req_id(self) -> int:
        """Request."""
        return self._req_id

    @property
    def model_id(self) -> int:
        """Model."""
        return self._model_id

    @property
    def prefix_id(self) -> int:
        """Shared prefix; 2**64-1 means none."""
        return self._prefix_id


@final
class BlocksCacheKey(_Key):
    """Names a blocks cache.

    Args:
        cluster_id: Owner of the cache, uint64; `prompt_cluster_id` is another name for it.
        model_id: Model, uint64.

    Raises:
        TypeError: A field is not an integer.
        ValueError: A field is outside uint64.
        LLMException: LLM_PARAM_INVALID: cluster_id is missing, or a keyword is unknown.
    Source: api.md 5.3. Immutable, hashable, equal by value.
    """

    __slots__ = ("_model_id",)
    _fields = ("cluster_id", "model_id")

    @overload
    def __init__(self, cluster_id: int, model_id: int = ...) -> None: ...
    @overload
    def __init__(self, *, prompt_cluster_id: int, model_id: int = ...) -> None: ...
    def __init__(self, cluster_id: int = _REQUIRED, model_id: int = 0, **kwargs: int) -> None:
        if kwargs:
            cluster_id = _cluster_id("BlocksCacheKey", cluster_id, kwargs)
        self._cluster_id = _field("BlocksCacheKey", "cluster_id", cluster_id)
        self._model_id = _field("BlocksCacheKey", "model_id", model_id)

    @property
    def prompt_cluster_id(self) -> int:
        """The same as cluster_id."""
        return self._cluster_id

    @property
    def model_id(self) -> int:
        """Model."""
        return self._model_id


@final
class CacheKeyByIdAndIndex(_Key):
    """Names slot `batch_index` of cache `cache_id`.

    Args:
        cluster_id: Owner of the cache, uint64.
        cache_id: Its id there, uint64.
        batch_index: Slot, uint32.

    Raises:
        TypeError: A field is not an integer.
        ValueError: A field is outside its width.
        LLMException: LLM_PARAM_INVALID: cluster_id or cache_id is missing, or a keyword is unknown.
    Source: api.md 5.3. Immutable, hashable, equal by value.
    """

    __slots__ = ("_batch_index", "_cache_id")
    _fields = ("cluster_id", "cache_id", "batch_index")

    # One would do, but an overload needs two; the body tells the fields that are missing itself.
    @overload
    def __init__(self, cluster_id: int, cache_id: int, batch_index: int = ...) -> None: ...
    @overload
    def __init__(self, *, cluster_id: int, cache_id: int, batch_index: int = ...) -> None: ...
    def __init__(
        self,
        cluster_id: int = _REQUIRED,
        cache_id: int = _REQUIRED,
        batch_index: int = 0,
        **kwargs: int,
    ) -> None:
        kind = "CacheKeyByIdAndIndex"
        if kwargs:
            cluster_id = _cluster_id(kind, cluster_id, kwargs, alias=False)
        self._cluster_id = _field(kind, "cluster_id", cluster_id)
        self._cache_id = _field(kind, "cache_id", cache_id)
        self._batch_index = _field(kind, "batch_index", batch_index, UINT32_MAX)

    @property
    def cache_id(self) -> int:
        """Id of the cache at its owner."""
        return self._cache_id

    @property
    def batch_index(self) -> int:
        """Slot."""
        return self._batch_index


AnyKey: TypeAlias = BlocksCacheKey | CacheKey | CacheKeyByIdAndIndex
