"""Calls about memory faults and replaced memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_datadist._cache_manager.call_group import Calls
from llm_datadist._types.arguments import check_mem_infos

if TYPE_CHECKING:
    from llm_datadist._errors import Fault
    from llm_datadist._types import MemInfo


class MemoryCalls(Calls):
    """Calls about the memory under the caches. Source: api.md 7.9."""

    def remap_registered_memory(
        self, mem_infos: MemInfo | list[MemInfo] | tuple[MemInfo, ...]
    ) -> None:
        """Register memory again after its pages were replaced at the same addresses.

        Args:
            mem_infos: Ranges of MEM_TYPE_DEVICE, each wholly inside registered memory; addresses
                and bytes, no alignment. The pages must be in place already.

        When it returns every linked peer has dropped what it held of the old mapping and transfers
        of the ranges work, without relinking. A peer that does not answer within sync_kv_timeout
        loses its link, not the call its success. Overlapping transfers finish right or raise
        LLM_KV_CACHE_NOT_EXIST. Idempotent, thread-safe; all or nothing when an entry is wrong.

        Raises:
            TypeError: No MemInfo, or no list or tuple of them.
            LLMException: LLM_PARAM_INVALID naming the entry; nothing has changed then.
        Source: api.md 7.9.
        """
        self._engine.check_open("remap_registered_memory")
        self._engine.remap(check_mem_infos(mem_infos))

    def faulted_ranges(self) -> tuple[Fault, ...]:
        """Local memory that transfers could not access, as in `LLMException.faults` *(extension)*.

        It was marked by a failed transfer of this instance, or after a notice of a peer.
        Transfers of this instance that touch a marked range raise LLM_DEVICE_MEM_ERROR at once, and
        those of linked peers LLM_SUSPECT_REMOTE_ERROR, without touching the memory. A remap of any
        part of it takes the mark away, and so does the end of the cache.

        Source: api.md 7.9.
        """
        self._engine.check_open("faulted_ranges")
        return self._engine.fault_marks.ranges()
