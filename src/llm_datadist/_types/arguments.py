"""Checks of the arguments of cache calls; each returns the checked value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_datadist._types.addresses import check_addrs
from llm_datadist._types.block_list import is_array
from llm_datadist._types.cache import Cache
from llm_datadist._types.checks import (
    INT64_MAX,
    INT64_MIN,
    check_instance,
    check_int,
    check_range,
    check_uint32,
    check_uint64,
)
from llm_datadist._types.desc import CacheDesc
from llm_datadist._types.keys import CacheKey
from llm_datadist._types.transfer_configs import MemInfo

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_datadist._types.block_list import BlockList


def check_layers(
    src: object, dst: object, tensors_per_layer: object
) -> tuple[range | None, range | None, int]:
    """Return the layer arguments of a transfer: source, destination, tensors per layer."""
    if src is not None:
        src = check_range("src_layer_range", src)
    if dst is not None:
        dst = check_range("dst_layer_range", dst)
    return src, dst, check_int("tensor_num_per_layer", tensors_per_layer, 0, 255)


def check_registration(operation: str, cache_desc: object, addrs: object) -> tuple[int, ...]:
    """Return the addresses of a cache to register, which fit its description."""
    if cache_desc is None:
        raise AttributeError("cache_desc is None; give a CacheDesc")
    desc = check_instance("cache_desc", cache_desc, CacheDesc)
    desc.check_usable(operation)
    return check_addrs(operation, desc, addrs)


def check_keys(cache_keys: object, name: str = "cache_keys") -> tuple[CacheKey, ...]:
    """Return a list of CacheKeys."""
    keys = check_instance(name, cache_keys, list, tuple)
    for position, key in enumerate(keys):
        check_instance(f"{name}[{position}]", key, CacheKey)
    return tuple(keys)


def check_slot_copy(
    dst: object,
    src: object,
    dst_batch_index: object,
    src_batch_index: object,
    offset: object,
    size: object,
    req_id: object,
) -> tuple[Cache, Cache, int, int, int, int]:
    """Return the arguments of `copy_cache`, without the request id, which no copy needs."""
    caches = check_instance("dst", dst, Cache), check_instance("src", src, Cache)
    dst_slot = check_uint32("dst_batch_index", dst_batch_index)
    src_slot = check_uint32("src_batch_index", src_batch_index)
    offset_bytes = check_int("offset", offset, 0, INT64_MAX)
    num_bytes = check_int("size", size, INT64_MIN, INT64_MAX)
    if req_id is not None:
        check_uint64("req_id", req_id)
    return *caches, dst_slot, src_slot, offset_bytes, num_bytes


def check_dict(name: str, value: object) -> None:
    """Raise TypeError unless `value` is a dict of ints, or of lists or arrays of ints."""
    if not isinstance(value, dict):
        raise TypeError(f"{name} only support dict, got {type(value).__name__}")
    for key, item in value.items():
        if is_array(item):
            item = ()  # noqa: PLW2901 - its elements are checked where it is read
        for number in (key, *(item if isinstance(item, list | tuple) else (item,))):
            if isinstance(number, bool) or not hasattr(type(number), "__index__"):
                raise TypeError(f"{name} inner type only support int, got {type(number).__name__}")


def check_block_copies(kind: str, cache: object, copy_block_info: Mapping[int, BlockList]) -> None:
    """Raise TypeError unless these are arguments of `copy_blocks`.

    Args:
        kind: Name that the callers have for the class Cache.
        cache: A Cache.
        copy_block_info: Each value a list or tuple, a range or an array.
    """
    if not isinstance(cache, Cache):
        raise TypeError(f"cache only support {kind}, got {type(cache).__name__}")
    check_dict("copy_block_info", copy_block_info)
    for block, targets in copy_block_info.items():
        if not isinstance(targets, list | tuple) and not is_array(targets):
            raise TypeError(
                f"copy_block_info[{block!r}] inner type only support list of int, "
                f"got {type(targets).__name__}"
            )


def check_mem_infos(mem_infos: object) -> tuple[MemInfo, ...]:
    """Return one MemInfo or a list of them as a tuple."""
    if isinstance(mem_infos, MemInfo):
        return (mem_infos,)
    infos = check_instance("mem_infos", mem_infos, list, tuple)
    return tuple(
        check_instance(f"mem_infos[{position}]", info, MemInfo)
        for position, info in enumerate(infos)
    )
