"""One instance's end of the data plane, wrapped from the native core."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import numpy as np

from llm_datadist import _native
from llm_datadist._backends.outcomes import Outcome
from llm_datadist._errors import finalized

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from llm_datadist._backends.outcomes import Checksums
    from llm_datadist._backends.transfer import U64Array
    from llm_datadist._types.refs import Ref

_own: Final[dict[int, int]] = {}
"""Incarnations of open nodes of this process, and the process that opened each of them."""

_NATIVE: Final = frozenset(
    {
        "native",
        "lane_server",
        "append",
        "rewrite",
        "version",
        "read_log",
        "open_guard",
        "close_guard",
        "open_key",
        "close_key",
        "show_proof",
        "close_entry",
        "reopen_entry",
        "guard",
        "consumed",
    }
)
"""The attributes of a node that keep its native objects alive."""


class Node:
    """Guards, entries, the published directory, and the threads that serve peers.

    Args:
        incarnation: Random 64-bit name of this life of the instance.

    Raises:
        OSError: The published page cannot be had.

    Thread-safe. `close` ends every operation of the instance; the object stays usable for reads
    until `release`.
    """

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.native = _native.Node(incarnation)
        self.lane_server = _native.LaneServer(self.native)
        _own[incarnation] = os.getpid()
        # The registry's hot calls go straight to the native object.
        self.append = self.native.append
        self.rewrite = self.native.rewrite
        self.version = self.native.version
        self.read_log = self.native.read_log
        self.open_guard = self.native.open_guard
        self.close_guard = self.native.close_guard
        self.open_key = self.native.open_key
        self.close_key = self.native.close_key
        self.show_proof = self.native.show_proof
        self.close_entry = self.native.close_entry
        self.reopen_entry = self.native.reopen_entry
        self.guard = self.native.guard
        self.consumed = self.native.consumed

    def __getattr__(self, name: str) -> NoReturn:
        if name not in _NATIVE:
            raise AttributeError(name)
        raise finalized("the call")

    @property
    def consumed_fd(self) -> int:
        """Readable while `consumed()` has something to give."""
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
        """Compute the CRC-32C of each range of own memory, on the copy threads."""
        outcome, sums = _native.checksum(addresses, length, self.native, ref, deadline_ns)
        return Outcome(*outcome), np.frombuffer(sums, np.uint32)

    @staticmethod
    def probe(
        addresses: U64Array | Sequence[int], length: U64Array | Sequence[int], deadline_ns: int
    ) -> list[bool]:
        """Look which ranges of own memory this process can read, on the calling thread.

        Nothing is held meanwhile: memory that never answers keeps the caller alone.

        Returns:
            One value for each range; those that the deadline leaves no time for are left out at the
            end.
        """
        found = _native.probe(
            np.ascontiguousarray(addresses, dtype=np.uint64),
            np.ascontiguousarray(length, dtype=np.uint64),
            deadline_ns,
        )
        return [value == 1 for value in found]

    def touch(self, addresses: U64Array, length: U64Array, ref: Ref, deadline_ns: int) -> Outcome:
        """Bring own pages of an entry into memory, or give up at the deadline."""
        return Outcome(*self.native.touch(addresses, length, ref, deadline_ns))

    def close(self) -> None:
        """Kill the instance's guard, end every operation, close every served lane. Idempotent."""
        _own.pop(self.incarnation, None)
        if "native" in vars(self):
            self.native.close()
            self.lane_server.close()

    def release(self) -> None:
        """Let go of the native objects, and so of descriptors and address space. Idempotent.

        Explicitly, as the objects of an instance refer to each other in circles, and its caller may
        keep some of them. What runs natively keeps what it uses; any later use raises
        LLM_ENGINE_FINALIZED.
        """
        for name in _NATIVE:
            vars(self).pop(name, None)


def is_of_this_process(incarnation: int) -> bool:
    """Return whether an open node of this process has that incarnation: not one of a parent's."""
    return _own.get(incarnation) == os.getpid()


def set_threads(count: int) -> None:
    """Set the process-wide number of copy threads (the caller's included); 0 = from the cores."""
    _native.set_threads(count)
