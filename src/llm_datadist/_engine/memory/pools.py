"""Memory pools of an instance."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from llm_datadist._control.limits import memory_remedy
from llm_datadist._devices.cpu import PoolMemory
from llm_datadist._devices.cuda import DriverUnavailable, GpuPoolMemory, PinnedMemory
from llm_datadist._errors import LLMStatusCode, fail
from llm_datadist._registry import Pool
from llm_datadist._types import Placement
from llm_datadist._types.stats import PoolStats

if TYPE_CHECKING:
    from llm_datadist._errors import LLMException
    from llm_datadist._options.settings import Pool as PoolConfig

__all__ = ["MemoryPools"]


@final
class MemoryPools:
    """Owns the memory of an instance's pools.

    Attributes:
        memories: The mapped segments of host memory.
        on_gpus: The memories of GPUs, each with its allocator.
        by_placement: Their allocators.
    """

    def __init__(self) -> None:
        self.memories: list[PoolMemory] = []
        self.on_gpus: list[tuple[GpuPoolMemory, Pool]] = []
        self._pinned: list[PinnedMemory] = []
        self.by_placement: dict[Placement, Pool] = {}
        self._named: dict[str, Pool] = {}

    def add(self, option: str, config: PoolConfig | None, *placements: Placement) -> None:
        """Allocate the pool of an option, for some placements; None for no pool.

        Raises:
            LLMException: LLM_OUT_OF_MEMORY.
        """
        if config is None:
            return
        try:
            memory = PoolMemory(max(config.memory_size, 1), f"llm_datadist-{option}")
        except MemoryError as error:
            raise _full(option, error) from error
        self.memories.append(memory)
        pool = Pool(memory.address, config.memory_size, config.page_shift)
        self.by_placement.update(dict.fromkeys(placements, pool))
        name = "shared" if len(placements) > 1 else placements[0].name.lower()
        self._named[name] = pool

    def add_device(self, option: str, config: PoolConfig | None, ordinal: int) -> None:
        """Allocate the pool of an option on a GPU, for Placement.DEVICE; None for no pool.

        Raises:
            LLMException: LLM_OUT_OF_MEMORY: the GPU has less memory free; LLM_FEATURE_NOT_ENABLED:
                there is no such GPU, or it cannot have pools.
        """
        if config is None:
            return
        try:
            memory = GpuPoolMemory(config.memory_size, ordinal)
        except MemoryError as error:
            raise _full(option, error) from error
        except DriverUnavailable as error:
            raise fail(
                LLMStatusCode.LLM_FEATURE_NOT_ENABLED,
                "init",
                f"{option} cannot be had: {error}",
                "choose another device_id, or register memory of your own",
            ) from error
        pool = Pool(memory.address, config.memory_size, config.page_shift, ordinal)
        self.on_gpus.append((memory, pool))
        self.by_placement[Placement.DEVICE] = self._named["device"] = pool

    def pin(self, option: str, ordinal: int) -> None:
        """Pin the host pools, for copies by a GPU. Their pages are all taken then.

        Raises:
            LLMException: LLM_OUT_OF_MEMORY: the driver refuses.
        """
        for memory in self.memories:
            try:
                self._pinned.append(PinnedMemory(memory.address, memory.size, ordinal))
            except MemoryError as error:
                raise _full(option, error) from error

    def stats(self) -> tuple[PoolStats, ...]:
        """Return the use of each pool."""
        return tuple(_stats(name, pool) for name, pool in self._named.items())

    def close(self) -> None:
        """Release the memory; no transfer may use it any more."""
        for pinned in self._pinned:
            pinned.close()
        for memory in self.memories:
            memory.close()
        for on_gpu, _ in self.on_gpus:
            on_gpu.close()


def _full(option: str, error: MemoryError) -> LLMException:
    return fail(
        LLMStatusCode.LLM_OUT_OF_MEMORY,
        "init",
        f"{option} cannot be had: {error}",
        _remedy(error, option),
    )


def _stats(name: str, pool: Pool) -> PoolStats:
    use = pool.statistics()
    return PoolStats(
        name, use.size, use.size - use.free, use.free, use.largest_free, use.num_allocations
    )


def _remedy(error: MemoryError, option: str) -> str:
    smaller = f"ask for less memory in {option}"
    cause = error.__cause__
    return f"{smaller}, or {memory_remedy(cause)}" if isinstance(cause, OSError) else smaller
