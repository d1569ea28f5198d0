"""The native data plane of one instance."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import numpy as np

from llm_datadist import _native
from llm_datadist._backends.outcomes import as_outcome
from llm_datadist._errors import finalized

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from llm_datadist._backends.outcomes import Checksums, Outcome
    from llm_datadist._backends.transfer import U64Array
    from llm_datadist._types.refs import Ref

_own: Final[dict[int, int]] = {}
"""For each incarnation of an open node, the process that opened it."""


class Node:
    """Guards, entries, the published directory, and the threads that serve peers.

    Args:
        incarnation: Random 64-bit number of this initialization of the instance.
        gpu_copy: How memory of GPUs is copied: "auto", "kernel" or "engine".

    Raises:
        OSError: The published page cannot be created.

    Thread-safe. `close` ends every operation of the instance; the object can still be read until
    `release`.
    """

    def __init__(self, incarnation: int, gpu_copy: str = "auto") -> None:
        self.incarnation = incarnation
        self.native: _native.Node = _native.Node(incarnation)
        self.native.copy_way = ("auto", "kernel", "engine").index(gpu_copy)
        self.lane_server: _native.LaneServer = _native.LaneServer(self.native)
        _own[incarnation] = os.getpid()
        # The registry's hot calls go straight to the native object.
        self.append: Callable[[bytes], None] = self.native.append
        self.rewrite: Callable[[bytes], None] = self.native.rewrite
        self.version: Callable[[], int] = self.native.version
        self.read_log: Callable[[int, int], bytes] = self.native.read_log
        self.open_guard: Callable[[], tuple[int, int]] = self.native.open_guard
        self.close_guard: Callable[[int, int], bool] = self.native.close_guard
        self.open_key: Callable[[], tuple[int, int]] = self.native.open_key
        self.close_key: Callable[[int, int], bool] = self.native.close_key
        self.show_proof: Callable[[tuple[int, int], bytes], None] = self.native.show_proof
        self.close_entry: Callable[[int, int], bool] = self.native.close_entry
        self.reopen_entry: Callable[[int, int], int] = self.native.reopen_entry
        self.suspend_entry: Callable[[int, int], bool] = self.native.suspend_entry
        self.resume_entry: Callable[[int], int] = self.native.resume_entry
        self.guard: Callable[[int], int] = self.native.guard
        self.consumed: Callable[[], list[tuple[int, int]]] = self.native.consumed

    def __getattr__(self, name: str) -> NoReturn:
        if "native" in vars(self) or name.startswith("__"):
            raise AttributeError(name)
        raise finalized("the call")

    @property
    def consumed_fd(self) -> int:
        """Descriptor that is readable while `consumed()` has keys to return."""
        return self.native.consumed_fd

    def open_entry(
        self,
        addresses: U64Array | Sequence[int],
        sizes: U64Array | Sequence[int],
        accessible: bool,
        device: int | None = None,
    ) -> Ref:
        """Open the entry of a cache; see `_native.Node.open_entry`."""
        return self.native.open_entry(
            np.ascontiguousarray(addresses, dtype=np.uint64),
            np.ascontiguousarray(sizes, dtype=np.uint64),
            accessible,
            -1 if device is None else device,
        )

    def checksum(
        self, addresses: U64Array, length: U64Array, ref: Ref, deadline_ns: int
    ) -> tuple[Outcome, Checksums]:
        """Compute the CRC-32C of each range of local memory, on the copy threads."""
        outcome, sums = _native.checksum(addresses, length, self.native, ref, deadline_ns)
        return as_outcome(outcome), np.frombuffer(sums, np.uint32)

    @staticmethod
    def probe(
        addresses: U64Array | Sequence[int], length: U64Array | Sequence[int], deadline_ns: int
    ) -> list[bool]:
        """Check which ranges of local memory this process can read, on the calling thread.

        Holds no lock or entry meanwhile: pages that never come block only the caller.

        Returns:
            One value for each range, in order, as far as the deadline allows.
        """
        found = _native.probe(
            np.ascontiguousarray(addresses, dtype=np.uint64),
            np.ascontiguousarray(length, dtype=np.uint64),
            deadline_ns,
        )
        return [value == 1 for value in found]

    def touch(self, addresses: U64Array, length: U64Array, ref: Ref, deadline_ns: int) -> Outcome:
        """Bring local pages of an entry into memory, or give up at the deadline."""
        return as_outcome(self.native.touch(addresses, length, ref, deadline_ns))

    def close(self) -> None:
        """Kill the instance's guard, end every operation, close every served lane. Idempotent."""
        _own.pop(self.incarnation, None)
        if "native" in vars(self):
            self.native.close()
            self.lane_server.close()

    def release(self) -> None:
        """Drop the native objects, and with them descriptors and address space. Idempotent.

        Must be explicit: the objects of an instance refer to each other in cycles, and its caller
        may keep some. Native operations keep what they use; later calls raise LLM_ENGINE_FINALIZED.
        """
        for name in vars(self).keys() - {"incarnation"}:
            vars(self).pop(name, None)


def is_of_this_process(incarnation: int) -> bool:
    """Return whether a node with that incarnation was opened by this process (not its parent)."""
    return _own.get(incarnation) == os.getpid()


def set_threads(count: int) -> None:
    """Set the process-wide number of copy threads, the caller included; 0: from the cores."""
    _native.set_threads(count)
