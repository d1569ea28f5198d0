"""Registration of caches' memory with the backends, and its withdrawal."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Literal

import numpy as np

from llm_datadist._backends.base import Unavailable
from llm_datadist._backends.transfer import Region
from llm_datadist._devices.cpu import ask_huge_pages
from llm_datadist._engine.memory.accelerators import device_memory, reaches_devices
from llm_datadist._engine.memory.drop_ranges import drop_ranges
from llm_datadist._errors import LLMException, LLMStatusCode, fail

if TYPE_CHECKING:
    from llm_datadist._backends.base import Backend
    from llm_datadist._backends.transfer import MemoryKind
    from llm_datadist._engine.instance import Lifetime
    from llm_datadist._links import LinkTable
    from llm_datadist._options.settings import Config
    from llm_datadist._plan import Layout
    from llm_datadist._types import Placement

logger = logging.getLogger("llm_datadist")

_MANY_RANGES = 1000


class MemoryRegistration:
    """Registers the memory of caches with the backends of one instance. Thread-safe.

    Where peers read by themselves (`Capabilities.withdraws`), the end of a cache waits until they
    have confirmed that they stopped. A peer that does not answer loses its link, and the backend
    makes the memory unreachable for it.
    """

    def __init__(
        self, config: Config, backends: list[Backend], links: LinkTable, life: Lifetime
    ) -> None:
        self._config = config
        self._backends = backends
        self._links = links
        self._life = life

    def adopt(self, operation: str, layout: Layout, placement: Placement) -> int | None:
        """Return the accelerator that owns the caller's memory, None for host memory.

        Asks the kernel for huge pages in host memory if the option `huge_pages` says so.

        Raises:
            LLMException: LLM_PARAM_INVALID: several memories, or not what the placement says;
                LLM_FEATURE_NOT_ENABLED: an accelerator's, and no backend moves it.
        """
        device = device_memory(self._config, operation, layout.starts, placement)
        if device is not None and not any(map(reaches_devices, self._backends)):
            raise fail(
                LLMStatusCode.LLM_FEATURE_NOT_ENABLED,
                operation,
                f"the addresses are of GPU {device}, and this instance cannot move its memory",
                'set llm.Device to "cuda", or transfer_backend to "nixl", before init',
            )
        if device is None and self._config.huge_pages != "off":
            self._ask_huge_pages(layout, self._config.huge_pages)
        return device

    def register(
        self, operation: str, layout: Layout, placement: Placement, device: int | None
    ) -> None:
        """Register memory before it is published.

        Raises:
            LLMException: LLM_FAILED: an accelerator's, which a backend refuses.
        """
        region = self._region(layout, placement, device)
        done: list[Backend] = []
        try:
            for backend in self._backends:
                backend.register(region)
                done.append(backend)
        except Unavailable as error:
            for backend in done:
                backend.deregister(region)
            raise fail(
                LLMStatusCode.LLM_FAILED,
                operation,
                str(error),
                "see what the engine has printed; host memory works without it",
            ) from error

    def deregister(self, layout: Layout, placement: Placement, device: int | None) -> None:
        """End all transfers of memory whose guards are closed."""
        region = self._region(layout, placement, device)
        for backend in self._backends:
            if backend.capabilities.withdraws:
                backend.withdraw(region)
                self._withdraw(backend, layout)
            backend.deregister(region)

    @staticmethod
    def _ask_huge_pages(layout: Layout, how: Literal["advise", "collapse"]) -> None:
        began = time.monotonic()
        agreed = ask_huge_pages([(start, layout.tensor_bytes) for start in layout.starts], how)
        logger.info(
            "huge pages, %s: the kernel agreed for %d of %d bytes of a cache within %.3f s",
            how,
            agreed,
            len(layout.starts) * layout.tensor_bytes,
            time.monotonic() - began,
        )

    def _region(self, layout: Layout, placement: Placement, device: int | None) -> Region:
        sizes = np.full(len(layout.addrs), layout.tensor_bytes, np.uint64)
        device_id = self._config.device_ids[0] if device is None else device
        kind: MemoryKind = "DRAM" if device is None else "VRAM"
        return Region(layout.addrs, sizes, placement, device_id, layout.unit_bytes, kind)

    def _withdraw(self, backend: Backend, layout: Layout) -> None:
        """Wait until peers have stopped reading; fence the backend if one does not answer."""
        if self._life.closing:
            return
        ranges = tuple((start, layout.tensor_bytes) for start in layout.starts)
        if len(ranges) > _MANY_RANGES:
            first = min(layout.starts)
            ranges = ((first, max(layout.starts) + layout.tensor_bytes - first),)
        deadline_ns = time.monotonic_ns() + self._config.sync_timeout_ms * 1_000_000
        try:
            silent = drop_ranges(
                self._links,
                self._life,
                "withdrawal of memory",
                ranges,
                deadline_ns,
                lambda link: backend.name in link.data.peer.metadata,
            )
        except (LLMException, RuntimeError) as error:
            if not self._life.closing:
                backend.fence(f"peers were not notified that memory was withdrawn ({error})")
            return
        for link in silent:
            backend.fence(f"cluster {link.cluster_id} may still read memory that was withdrawn")
