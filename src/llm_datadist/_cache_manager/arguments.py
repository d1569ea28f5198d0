"""Checks of arguments that several methods of CacheManager share."""

from __future__ import annotations

from llm_datadist._types.addresses import check_addrs
from llm_datadist._types.checks import check_instance, check_int, check_range
from llm_datadist._types.desc import CacheDesc
from llm_datadist._types.keys import CacheKey
from llm_datadist._types.transfer import MemInfo

LayerArguments = tuple["range | None", "range | None", int]


def check_layers(src: object, dst: object, tensors_per_layer: object) -> LayerArguments:
    if src is not None:
        src = check_range("src_layer_range", src)
    if dst is not None:
        dst = check_range("dst_layer_range", dst)
    return src, dst, check_int("tensor_num_per_layer", tensors_per_layer, 0, 255)


def check_registration(operation: str, cache_desc: object, addrs: object) -> tuple[int, ...]:
    if cache_desc is None:
        raise AttributeError("cache_desc is None; give a CacheDesc")
    desc = check_instance("cache_desc", cache_desc, CacheDesc)
    if addrs is None:
        raise AttributeError("addrs is None; give a list with the address of each tensor")
    desc.check_usable(operation)
    return check_addrs(operation, desc, addrs)


def check_keys(cache_keys: object) -> tuple[CacheKey, ...]:
    keys = check_instance("cache_keys", cache_keys, list, tuple)
    for position, key in enumerate(keys):
        check_instance(f"cache_keys[{position}]", key, CacheKey)
    return tuple(keys)


def check_dict(name: str, value: object) -> None:
    if not isinstance(value, dict):
        raise TypeError(f"{name} only support dict, got {type(value).__name__}")
    for key, item in value.items():
        for number in (key, *(item if isinstance(item, list | tuple) else (item,))):
            if isinstance(number, bool) or not hasattr(type(number), "__index__"):
                raise TypeError(f"{name} inner type only support int, got {type(number).__name__}")


def check_block_lists(name: str, value: dict[int, list[int]]) -> None:
    for block, targets in value.items():
        if not isinstance(targets, list | tuple):
            raise TypeError(
                f"{name}[{block!r}] inner type only support list of int, "
                f"got {type(targets).__name__}"
            )


def check_mem_infos(mem_infos: object) -> tuple[MemInfo, ...]:
    if isinstance(mem_infos, MemInfo):
        return (mem_infos,)
    infos = check_instance("mem_infos", mem_infos, list, tuple)
    return tuple(
        check_instance(f"mem_infos[{position}]", info, MemInfo)
        for position, info in enumerate(infos)
    )
