"""remap_registered_memory: registers ranges again and has every peer drop its mappings."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, TypeAlias

from llm_datadist._devices.cuda import DriverUnavailable
from llm_datadist._engine.memory.drop_ranges import drop_ranges
from llm_datadist._errors import LLMStatusCode, fail, invalid
from llm_datadist._types import Memtype

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_datadist._devices.cuda import GpuPoolMemory
    from llm_datadist._engine.instance import Instance
    from llm_datadist._engine.link.messages import Remapped
    from llm_datadist._engine.memory.fault_marks import FaultMarks
    from llm_datadist._links import Link
    from llm_datadist._registry import LocalCache, Pool
    from llm_datadist._types import MemInfo

Ranges: TypeAlias = "tuple[tuple[int, int], ...]"

OPERATION = "remap_registered_memory"


class Remap:
    """Both ends of remap_registered_memory. Thread-safe.

    Attributes:
        num_remaps: Calls that succeeded.
    """

    def __init__(
        self,
        instance: Instance,
        fault_marks: FaultMarks,
        pools: Sequence[tuple[GpuPoolMemory, Pool]] = (),
    ) -> None:
        self._instance = instance
        self._fault_marks = fault_marks
        self._pools = pools
        self._lock = threading.Lock()
        self._one_replacement = threading.Lock()
        self.num_remaps = 0

    def run(self, mem_infos: tuple[MemInfo, ...]) -> None:
        """See CacheManager.remap_registered_memory."""
        if not mem_infos:
            raise invalid(OPERATION, "mem_infos is empty", "give at least one MemInfo")
        ranges = tuple(self._range(position, info) for position, info in enumerate(mem_infos))
        deadline_ns = time.monotonic_ns() + self._instance.config.sync_timeout_ms * 1_000_000
        dropped = (*ranges, *self._replace(ranges))
        self._announce(ranges)
        # New guards: transfers of caches that were resolved before fail.
        registry = self._instance.registry
        registry.remap(self._touched(ranges))
        for address, size in ranges:
            self._fault_marks.clear(address, size)
        self._fault_marks.send_to_peers()  # the remaining marks, under the new guards
        instance = self._instance
        drop_ranges(instance.links, instance.life, OPERATION, dropped, deadline_ns)
        with self._lock:
            self.num_remaps += 1

    def _replace(self, ranges: Ranges) -> Ranges:
        """Put new memory under the pools of GPUs that have some of the ranges.

        Caches that share an allocation with them rest meanwhile, and keep all other bytes.

        Returns:
            The allocations that were replaced: peers map no less.
        """
        done: Ranges = ()
        for memory, pool in self._pools:
            found = [memory.pieces(*each) for each in ranges]
            pieces = tuple(each for each in found if each is not None)
            if not pieces:
                continue

            def replace(memory: GpuPoolMemory = memory, pieces: Ranges = pieces) -> None:
                memory.replace(ranges)
                self._announce(pieces)

            try:
                with self._one_replacement, pool.publication:
                    self._instance.registry.remap_around(self._touched(pieces), replace)
            except (MemoryError, DriverUnavailable) as error:
                is_full = isinstance(error, MemoryError)
                raise fail(
                    LLMStatusCode.LLM_OUT_OF_MEMORY if is_full else LLMStatusCode.LLM_FAILED,
                    OPERATION,
                    f"the pool of GPU {memory.ordinal} has no new memory: {error}",
                    "free memory of the GPU; the caches have what they had",
                ) from error
            done += pieces
        return done

    def _announce(self, ranges: Ranges) -> None:
        for backend in self._instance.backends:
            for address, size in ranges:
                backend.remapped(address, size)

    def _touched(self, ranges: Ranges) -> list[LocalCache]:
        overlapping = self._instance.registry.ranges.overlapping
        found = {local.cache_id: local for each in ranges for local in overlapping(*each)}
        return list(found.values())

    def serve(self, link: Link, message: Remapped) -> bytes:
        """Forget ranges that a peer has remapped. Called on a worker thread."""
        for address, size in message.ranges:
            for channel in link.data.channels():
                channel.forget(address, size)
            link.data.marks.forget(address, size)
        return b""

    def _range(self, position: int, info: MemInfo) -> tuple[int, int]:
        name = f"mem_infos[{position}]"
        if info.mem_type is not Memtype.MEM_TYPE_DEVICE:
            raise invalid(OPERATION, f"{name} is {info.mem_type}", "give MEM_TYPE_DEVICE memory")
        if info.addr <= 0 or info.size <= 0:
            raise invalid(
                OPERATION,
                f"{name} has addr {info.addr} and size {info.size}",
                "give both greater than 0",
            )
        if not self._instance.registry.ranges.covers(info.addr, info.size):
            raise invalid(
                OPERATION,
                f"{name}, {info.size} bytes at {info.addr:#x}, is not wholly inside memory "
                "that this instance has registered",
                "give a range inside registered or allocated caches",
            )
        return info.addr, info.size
