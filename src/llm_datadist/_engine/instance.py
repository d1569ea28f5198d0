"""What every part of an engine is given: the instance's id, options, registry, links, backends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from llm_datadist._errors import inherited

if TYPE_CHECKING:
    from llm_datadist._backends.base import Backend
    from llm_datadist._backends.node import Node
    from llm_datadist._links import LinkTable
    from llm_datadist._options.settings import Config
    from llm_datadist._registry import CacheRegistry

__all__ = ["Instance", "Lifetime"]


@final
@dataclass(slots=True)
class Lifetime:
    """Whether an instance accepts calls.

    Attributes:
        closing: It is being finalized, or was.
        inherited: This process is a forked child of the one that initialized it.
    """

    closing: bool = False
    inherited: bool = False

    def check_open(self, operation: str) -> None:
        """Raise RuntimeError when the instance was finalized."""
        if self.inherited:
            raise RuntimeError(inherited(operation))
        if self.closing:
            raise RuntimeError(
                f"{operation}: the LLMDataDist instance is not initialized any more; call init()"
            )


@final
@dataclass(frozen=True, slots=True)
class Instance:
    """The shared parts of one initialized instance.

    Attributes:
        cluster_id: Its id.
        config: Its parsed options.
        node: Its native core: published page, guards and directory.
        registry: Its caches.
        links: Its links to peers.
        backends: Its data paths, the best one first. `testing.inject_faults` exchanges the items.
        life: Whether it accepts calls.
    """

    cluster_id: int
    config: Config
    node: Node
    registry: CacheRegistry
    links: LinkTable
    backends: list[Backend]
    life: Lifetime
