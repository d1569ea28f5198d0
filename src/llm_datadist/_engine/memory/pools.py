"""Memory pools of an instance."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from llm_datadist._control.limits import memory_remedy
from llm_datadist._devices.cpu import PoolMemory
from llm_datadist._errors import LLMStatusCode, fail
from llm_datadist._registry import Pool
from llm_datadist._types.stats import PoolStats

if TYPE_CHECKING:
    from llm_datadist._options.settings import Pool as PoolConfig
    from llm_datadist._types import Placement

__all__ = ["MemoryPools"]


@final
class MemoryPools:
    """Owns the memory of an instance's pools.

    Attributes:
        memories: The mapped segments.
        by_placement: Their allocators.
    """

    def __init__(self) -> None:
        self.memories: list[PoolMemory] = []
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
            raise fail(
                LLMStatusCode.LLM_OUT_OF_MEMORY,
                "init",
                f"{option} cannot be had: {error}",
                _remedy(error, option),
            ) from error
        self.memories.append(memory)
        pool = Pool(memory.address, config.memory_size, config.page_shift)
        self.by_placement.update(dict.fromkeys(placements, pool))
        name = "shared" if len(placements) > 1 else placements[0].name.lower()
        self._named[name] = pool

    def stats(self) -> tuple[PoolStats, ...]:
        """Return the use of each pool."""
        return tuple(_stats(name, pool) for name, pool in self._named.items())

    def close(self) -> None:
        """Release the memory; no transfer may use it any more."""
        for memory in self.memories:
            memory.close()


def _stats(name: str, pool: Pool) -> PoolStats:
    use = pool.statistics()
    return PoolStats(
        name, use.size, use.size - use.free, use.free, use.largest_free, use.num_allocations
    )


def _remedy(error: MemoryError, option: str) -> str:
    smaller = f"ask for less memory in {option}"
    cause = error.__cause__
    return f"{smaller}, or {memory_remedy(cause)}" if isinstance(cause, OSError) else smaller
