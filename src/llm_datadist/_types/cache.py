"""Cache objects of the public interface.

Source: api.md 5.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, final

import numpy as np

from llm_datadist._errors import invalid
from llm_datadist._types.addresses import check_addrs
from llm_datadist._types.checks import check_instance, check_int
from llm_datadist._types.desc import CacheDesc
from llm_datadist._types.enums import DataType
from llm_datadist._types.named_calls import names_calls

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["NO_CACHE_ID", "NUMPY_TYPES", "Cache", "KvCache"]

#: The id of a cache that is registered nowhere.
NO_CACHE_ID: Final = -1

#: numpy has no bfloat16: its bits are shown as uint16.
NUMPY_TYPES: dict[DataType, np.dtype[Any]] = {
    DataType.DT_FLOAT: np.dtype(np.float32),
    DataType.DT_FLOAT16: np.dtype(np.float16),
    DataType.DT_INT8: np.dtype(np.int8),
    DataType.DT_INT32: np.dtype(np.int32),
    DataType.DT_UINT8: np.dtype(np.uint8),
    DataType.DT_INT16: np.dtype(np.int16),
    DataType.DT_UINT16: np.dtype(np.uint16),
    DataType.DT_UINT32: np.dtype(np.uint32),
    DataType.DT_INT64: np.dtype(np.int64),
    DataType.DT_UINT64: np.dtype(np.uint64),
    DataType.DT_DOUBLE: np.dtype(np.float64),
    DataType.DT_BOOL: np.dtype(np.bool_),
    DataType.DT_BF16: np.dtype(np.uint16),
}


@names_calls
@final
class Cache:
    """A set of equally shaped tensors: registered, allocated, or wrapped for `swap_blocks`.

    Made by the methods of CacheManager and by `create_cpu_cache`, not by calling the class. The
    memory of a registered cache is the caller's, who keeps it alive until `unregister_cache`
    returns. Dropping this object releases nothing, but for one of `KvCacheManager.allocate_cache`
    or `allocate_blocks_cache`: the last reference to it is the hold of its id.

    Args:
        cache_id: Id at its instance; NO_CACHE_ID if it is registered nowhere.
        cache_desc: Description; a copy is kept.
        tensor_addrs: Address of each tensor, checked already.
        is_blocks_cache: Whether dimension 0 counts blocks.
        owner: Token of the instance that made it, compared by identity.
        is_host_memory: Whether the addresses can be dereferenced by this process.

    Source: api.md 5.2. Read-only.
    """

    __slots__ = (
        "__weakref__",
        "_addrs",
        "_cache_id",
        "_desc",
        "_is_blocks_cache",
        "_is_host_memory",
        "_owner",
    )

    def __init__(
        self,
        cache_id: int,
        cache_desc: CacheDesc,
        tensor_addrs: tuple[int, ...],
        *,
        is_blocks_cache: bool = False,
        owner: object = None,
        is_host_memory: bool = True,
    ) -> None:
        self._cache_id = cache_id
        self._desc = cache_desc.copy()
        self._addrs = tensor_addrs
        self._is_blocks_cache = is_blocks_cache
        self._owner = owner
        self._is_host_memory = is_host_memory

    @classmethod
    def create_cpu_cache(cls, cache_desc: CacheDesc, addrs: list[int] | list[list[int]]) -> Cache:
        """Wrap host memory of the caller, for `CacheManager.swap_blocks`.

        Args:
            cache_desc: Description.
            addrs: Address of each tensor; or a list with one such list, for the one device there
                is. The caller keeps the memory alive while the cache is in use.

        Returns:
            A cache without an id (its cache_id is -1), registered nowhere; to deallocate it does
            nothing.
        Raises:
            AttributeError: cache_desc or addrs is None.
            TypeError: A wrong type.
            ValueError: An address outside uint64, or a tensor that wraps the address space.
            LLMException: LLM_PARAM_INVALID: numbers and lists mixed in addrs ("should be
                consistent"), lists for several devices, counts that differ, an address of 0,
                no tensors, or DT_STRING.
        Source: api.md 5.2.
        """
        operation = "create_cpu_cache"
        if cache_desc is None:
            raise AttributeError("cache_desc is None; give a CacheDesc")
        check_instance("cache_desc", cache_desc, CacheDesc)
        cache_desc.check_usable(operation)
        flat = _flatten(operation, addrs)
        return cls(NO_CACHE_ID, cache_desc, check_addrs(operation, cache_desc, flat))

    @property
    def cache_id(self) -> int:
        """Id at its instance: 1, 2, ... since init; -1 for a cache that is registered nowhere."""
        return self._cache_id

    @property
    def cache_desc(self) -> CacheDesc:
        """Description at the time the cache was made; to change it has no effect on the cache."""
        return self._desc.copy()

    @property
    def tensor_addrs(self) -> list[int]:
        """Address of each tensor; a new list each time."""
        return list(self._addrs)

    @property
    def per_device_tensor_addrs(self) -> list[list[int]]:
        """Addresses by device; there is one device."""
        return [list(self._addrs)]

    @property
    def is_blocks_cache(self) -> bool:
        """Whether dimension 0 counts blocks."""
        return self._is_blocks_cache

    @property
    def owner(self) -> object:
        """Token of the instance that made the cache; None for create_cpu_cache *(internal)*."""
        return self._owner

    def tensor(self, index: int) -> NDArray[Any]:
        """Return a tensor as a numpy array over the same memory, writable *(extension)*.

        Args:
            index: Which tensor, 0-based.

        Returns:
            An array of the shape and type of the description; DT_BF16 as the bits, uint16. It owns
            no memory, and keeps this object alive: to use it after the memory is gone (of an
            allocated cache: after it was freed) is undefined.
        Raises:
            TypeError: index is not an integer.
            ValueError: index is negative.
            LLMException: LLM_PARAM_INVALID: no such tensor, or device memory that this process
                cannot address.
        Source: api.md 5.2.
        """
        addr = self._addr("tensor", index)
        if not self._is_host_memory:
            raise invalid(
                "tensor",
                "the cache is in device memory, which numpy cannot address",
                "use device_tensor, or copy it to a host cache with swap_blocks first",
            )
        return np.asarray(_Memory(self, addr, self._desc))

    def device_tensor(self, index: int) -> DeviceTensor:
        """Return a tensor in a GPU's memory for libraries of arrays there *(extension)*.

        `torch.as_tensor(cache.device_tensor(0), device="cuda")` and CuPy's `asarray` do not copy.

        Args:
            index: Which tensor, 0-based.

        Returns:
            An object with `__cuda_array_interface__`, of the shape and type of the description;
            DT_BF16 as the bits, uint16. It owns no memory, as what `tensor` returns.
        Raises:
            TypeError: index is not an integer.
            ValueError: index is negative.
            LLMException: LLM_PARAM_INVALID: no such tensor, or host memory.
        Source: an extension; docs/design/gpu.md.
        """
        addr = self._addr("device_tensor", index)
        if self._is_host_memory:
            raise invalid("device_tensor", "the cache is in host memory", "use tensor")
        return DeviceTensor(self, addr, self._desc)

    def _addr(self, operation: str, index: int) -> int:
        index = check_int("index", index)
        if index >= len(self._addrs):
            raise invalid(
                operation,
                f"index {index} of a cache with {len(self._addrs)} tensors",
                f"give an index in [0, {len(self._addrs) - 1}]",
            )
        return self._addrs[index]

    def __repr__(self) -> str:
        addresses = ", ".join(map(hex, self._addrs[:4]))
        if len(self._addrs) > 4:
            addresses += ", ..."
        return (
            f"Cache(cache_id={self._cache_id}, cache_desc={self._desc!r}, "
            f"tensor_addrs=[{addresses}], is_blocks_cache={self._is_blocks_cache})"
        )


KvCache = Cache


class _Memory:
    """Memory in the form that numpy takes for the base of an array, which keeps its cache."""

    def __init__(self, cache: Cache, addr: int, desc: CacheDesc) -> None:
        self._cache = cache
        self.__array_interface__ = _interface(addr, desc)


@final
class DeviceTensor:
    """A tensor of a cache in a GPU's memory; it keeps its cache. See `Cache.device_tensor`."""

    __slots__ = ("_cache", "_interface")

    def __init__(self, cache: Cache, addr: int, desc: CacheDesc) -> None:
        self._cache = cache
        self._interface = _interface(addr, desc)

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        """Version 3 of the interface: address, shape, and type; contiguous, and of no stream."""
        return dict(self._interface)


def _interface(addr: int, desc: CacheDesc) -> dict[str, object]:
    return {
        "version": 3,
        "data": (addr, False),
        "shape": tuple(desc.shape),
        "typestr": NUMPY_TYPES[desc.data_type].str,
    }


def _flatten(operation: str, addrs: object) -> object:
    """Return addrs without the level of devices, if it has one; other mistakes are left to find."""
    if not isinstance(addrs, (list, tuple)):
        return addrs
    nested = [isinstance(entry, (list, tuple)) for entry in addrs]
    if not any(nested):
        return addrs
    if not all(nested):
        problem = "addrs mixes addresses and lists of addresses; its entries should be consistent"
    elif len(addrs) > 1:
        problem = f"addrs has lists for {len(addrs)} devices; an instance has one"
    else:
        entry: object = addrs[0]
        return entry
    raise invalid(operation, problem, "give one flat list of addresses")
