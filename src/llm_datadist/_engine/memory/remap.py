"""remap_registered_memory: registers ranges again and has every peer drop its mappings."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from llm_datadist._engine.memory.drop_ranges import drop_ranges
from llm_datadist._errors import invalid
from llm_datadist._types import Memtype

if TYPE_CHECKING:
    from llm_datadist._engine.instance import Instance
    from llm_datadist._engine.link.messages import Remapped
    from llm_datadist._engine.memory.fault_marks import FaultMarks
    from llm_datadist._links import Link
    from llm_datadist._types import MemInfo

OPERATION = "remap_registered_memory"


class Remap:
    """Both ends of remap_registered_memory. Thread-safe.

    Attributes:
        num_remaps: Calls that succeeded.
    """

    def __init__(self, instance: Instance, fault_marks: FaultMarks) -> None:
        self._instance = instance
        self._fault_marks = fault_marks
        self._lock = threading.Lock()
        self.num_remaps = 0

    def run(self, mem_infos: tuple[MemInfo, ...]) -> None:
        """See CacheManager.remap_registered_memory."""
        if not mem_infos:
            raise invalid(OPERATION, "mem_infos is empty", "give at least one MemInfo")
        ranges = tuple(self._range(position, info) for position, info in enumerate(mem_infos))
        deadline_ns = time.monotonic_ns() + self._instance.config.sync_timeout_ms * 1_000_000
        for backend in self._instance.backends:
            for address, size in ranges:
                backend.remapped(address, size)
        # New guards: transfers of caches that were resolved before fail.
        registry = self._instance.registry
        touched = {
            local.cache_id: local
            for address, size in ranges
            for local in registry.ranges.overlapping(address, size)
        }
        registry.remap(list(touched.values()))
        for address, size in ranges:
            self._fault_marks.clear(address, size)
        self._fault_marks.send_to_peers()  # the remaining marks, under the new guards
        instance = self._instance
        drop_ranges(instance.links, instance.life, OPERATION, ranges, deadline_ns)
        with self._lock:
            self.num_remaps += 1

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
