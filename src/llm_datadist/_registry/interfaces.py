"""Interfaces that the registry needs: the native node, and the listener of registrations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llm_datadist._plan import Layout
    from llm_datadist._types import Placement
    from llm_datadist._types.refs import Ref


class Log(Protocol):
    """The published log of directory records; its version is `era << 40 | tail`."""

    def version(self) -> int:
        """Return the version; its era is odd while the log is being rewritten."""

    def append(self, record: bytes, /) -> None:
        """Append whole records; the tail moves by their length. Raises when the log is full."""

    def rewrite(self, records: bytes, /) -> None:
        """Replace the log; the era moves by two."""


class Node(Log, Protocol):
    """The part of the native node that the registry uses. Thread-safe."""

    def open_entry(
        self,
        addresses: NDArray[np.uint64],
        sizes: NDArray[np.uint64],
        accessible: bool,
        device: int | None = None,
        /,
    ) -> Ref:
        """Make memory of the host, or of an accelerator, transferable.

        ValueError or MemoryError when no guard is left.
        """

    def close_entry(self, index: int, value: int, /) -> bool:
        """Close an entry; when it returns no transfer touches the memory any more."""

    def reopen_entry(self, index: int, value: int, /) -> int:
        """Close an entry and open it with a new value; return the value, 0 if it was not open."""

    def suspend_entry(self, index: int, value: int, /) -> bool:
        """Close an entry so that it can be resumed; return False if it was not open."""

    def resume_entry(self, index: int, /) -> int:
        """Open a suspended entry again; return its new value."""

    def open_key(self) -> Ref:
        """Open a key guard. ValueError or MemoryError when none is left."""

    def close_key(self, index: int, value: int, /) -> bool:
        """Close a key guard; return False if a peer had consumed it. Once per guard."""

    def consumed(self) -> list[Ref]:
        """Return the key guards that peers consumed since the last call."""


class MemoryListener(Protocol):
    """Registers memory with data paths that need it (an RDMA engine, for example).

    Of what peers may reach; `adopt` is called for all memory of the caller.
    """

    def adopt(self, operation: str, layout: Layout, placement: Placement) -> int | None:
        """Return the accelerator that owns the caller's memory, None for host memory.

        May ask the kernel for huge pages in host memory. An exception fails the registration.
        """

    def register(
        self, operation: str, layout: Layout, placement: Placement, device: int | None
    ) -> None:
        """Register memory before it is published. An exception fails the registration."""

    def deregister(self, layout: Layout, placement: Placement, device: int | None) -> None:
        """End all use of memory whose entry is closed. Must not raise."""
