"""The call that registers tensors instead of addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_datadist._cache_manager.call_group import Calls
from llm_datadist._cache_manager.layout_arguments import check_layout
from llm_datadist._errors import invalid
from llm_datadist._types import BlocksCacheKey, CacheDesc, CacheKey, Placement
from llm_datadist._types.arguments import check_keys, check_registration
from llm_datadist._types.checks import check_bool, check_instance, wrong_type
from llm_datadist._types.tensors import tensor_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_datadist._plan.layouts import KvLayout
    from llm_datadist._types import Cache
    from llm_datadist._types.tensors import TensorMemory


class TensorCalls(Calls):
    """Registers tensors *(extension)*."""

    def register_tensors(
        self,
        tensors: Sequence[object],
        key: BlocksCacheKey | CacheKey | Sequence[CacheKey] | None = None,
        *,
        remote_accessible: bool = True,
        placement: Placement | None = None,
        layout: KvLayout | None = None,
    ) -> Cache:
        """Register tensors as a cache, with their addresses, shape and type *(extension)*.

        The cache keeps the tensors alive until `unregister_cache` or `finalize` returns. No array
        library is imported.

        Args:
            tensors: List or tuple of contiguous tensors of one shape and type: of torch (also in
                the memory of a GPU), numpy, or any library with DLPack. Dimension 0 counts blocks,
                or slots with CacheKeys. No copy is made.
            key: BlocksCacheKey, or None: a blocks cache, with or without a name. CacheKey, or list
                of them: a contiguous cache, key i names slot i.
            remote_accessible: Whether linked peers may read and write the tensors.
            placement: None = DEVICE for the memory of a GPU, else HOST.
            layout: As for `register_blocks_cache`; of a blocks cache only.

        Raises:
            TypeError: A wrong type.
            LLMException: LLM_PARAM_INVALID: no tensors, a tensor that is not contiguous, read-only
                or of another shape, type or device than the first one, a type without a DataType;
                and as `register_blocks_cache` and `register_cache`. Nothing has changed then.
        Source: docs/howto/tensors.md. Linked peers see the cache at once.
        """
        operation = "register_tensors"
        self._engine.check_open(operation)
        check_instance("tensors", tensors, list, tuple)
        check_bool("remote_accessible", remote_accessible)
        if placement is not None:
            check_instance("placement", placement, Placement)
        blocks_key, keys = _split_keys(key)
        memories = _equal_memories(operation, tensors)
        first = memories[0]
        if placement is None:
            placement = Placement.DEVICE if first.on_device else Placement.HOST
        desc = CacheDesc(len(memories), list(first.shape), first.data_type, placement)
        addrs = check_registration(operation, desc, [memory.addr for memory in memories])
        owners = [memory.owner for memory in memories]
        if keys is None:
            kv_layout = check_layout(operation, layout, desc)
            return self._registry.register_blocks_cache(
                desc, addrs, blocks_key, remote_accessible, kv_layout, owners, operation
            )
        if layout is not None:
            raise invalid(
                operation,
                "layout is given with CacheKeys",
                "give it with a BlocksCacheKey or without a key: it describes blocks",
            )
        return self._registry.register_cache(
            desc, addrs, keys, remote_accessible, owners, operation
        )


def _split_keys(
    key: BlocksCacheKey | CacheKey | Sequence[CacheKey] | None,
) -> tuple[BlocksCacheKey | None, tuple[CacheKey, ...] | None]:
    """Return the key of a blocks cache, or the keys of a contiguous one."""
    if key is None or isinstance(key, BlocksCacheKey):
        return key, None
    if not isinstance(key, CacheKey | list | tuple):
        raise wrong_type("key", key, "BlocksCacheKey, CacheKey, or list or tuple of CacheKey")
    return None, check_keys([key] if isinstance(key, CacheKey) else key, "key")


def _equal_memories(operation: str, tensors: Sequence[object]) -> list[TensorMemory]:
    """Return the memory of each tensor; all have one shape, type and kind of memory."""
    if not tensors:
        raise invalid(operation, "tensors is empty", "give at least one tensor")
    memories = [
        tensor_memory(operation, f"tensors[{position}]", tensor)
        for position, tensor in enumerate(tensors)
    ]
    first = memories[0]
    if not (first.shape and all(first.shape)):
        raise invalid(
            operation,
            f"tensors[0] has the shape {first.shape}",
            "give tensors of one or more dimensions, each at least 1",
        )
    for position, memory in enumerate(memories):
        for what, value, expected in (
            ("shape", memory.shape, first.shape),
            ("type", memory.data_type, first.data_type),
            ("memory", memory.on_device, first.on_device),
        ):
            if value != expected:
                raise invalid(
                    operation,
                    f"tensors[{position}] has another {what} than tensors[0]"
                    + ("" if what == "memory" else f": {value}, not {expected}"),
                    "register tensors that differ as caches of their own",
                )
    return memories
