"""End-to-end checks of transfers: compares the CRC-32C of both sides' memory afterwards.

Independent of the data path: the native threads of each side read their own memory, and the
initiator compares. A transfer is checked in segments, each right after it was moved, while it is in
the processors' caches; on the same host the checksums of a read are computed as it arrives.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, TypeAlias, final

import numpy as np
from msgspec.structs import replace

from llm_datadist._backends.outcomes import Code, Outcome
from llm_datadist._engine.memory.fault_marks import fault_of
from llm_datadist._errors import Fault
from llm_datadist._plan import NO_PLAN, Plan, cut, segments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llm_datadist._backends.node import Node
    from llm_datadist._backends.outcomes import Checksums as Sums
    from llm_datadist._backends.transfer import Transfer
    from llm_datadist._engine.link.data_plane import DataPlane
    from llm_datadist._registry import LocalCache, RemoteCache

    Destination: TypeAlias = tuple[int, LocalCache | RemoteCache | None]

SEGMENT_BYTES = 16 << 20
WINDOW_BYTES = 256 << 20
"""The same for a read whose checksums are computed as the bytes arrive."""

_MOST_REPORTED = 4096


def checkable(plan: Plan, unit_bytes: int) -> Plan:
    """Return the plan with no descriptor longer than a segment, cut between blocks (slots)."""
    return cut(plan, max(SEGMENT_BYTES // unit_bytes, 1) * min(unit_bytes, SEGMENT_BYTES))


def faults_of(different: Plan, destination: Destination, *, write: bool) -> tuple[Fault, ...]:
    """Return the slots or blocks at the destination that differ from their source.

    Args:
        different: Ranges that differ.
        destination: Owner of the destination and its cache, if it is known.
        write: Whether the destination is the remote side.
    """
    cluster_id, cache = destination
    ranges = zip(
        (different.remote if write else different.local).tolist(),
        different.length.tolist(),
        strict=True,
    )

    def faults() -> Iterator[Fault]:
        for addr, size in ranges:
            if cache is None:
                yield Fault(
                    cluster_id=cluster_id, cache_id=None, tensor_index=None, addr=addr, size=size
                )
            else:
                for piece in cache.layout.locate(addr, size):
                    yield fault_of(cluster_id, cache, piece)

    return tuple(islice(faults(), _MOST_REPORTED))


@final
class Checksums:
    """Carries out checked transfers of one instance. Thread-safe."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def run(self, data: DataPlane, transfer: Transfer, unit_bytes: int) -> tuple[Outcome, Plan]:
        """Carry out a transfer with a `checkable` plan, and compare the checksums.

        Args:
            data: The link.
            transfer: The transfer.
            unit_bytes: Bytes of a block (slot), which is compared as one.

        Returns:
            The outcome, and the ranges that differ if its code is CORRUPT. The segments (windows)
            after the first that differs were not moved.
        """
        channel = data.channel_for(transfer)
        reads = not transfer.write and not transfer.gather
        at_one_go = reads and channel is not None and channel.reads_and_sums
        check = self._read if at_one_go else self._move
        moved_bytes, version = 0, transfer.version
        for part in segments(transfer.length, WINDOW_BYTES if at_one_go else SEGMENT_BYTES):
            segment = _part(transfer, part, version)
            outcome, different = check(data, segment, unit_bytes)
            moved_bytes += outcome.moved_bytes
            if outcome.code != Code.OK:
                return _within(outcome, part, moved_bytes), different
            version = 0  # checked when the transfer began; afterwards the guards are compared
        return Outcome(Code.OK, moved_bytes=moved_bytes), NO_PLAN

    def _read(self, data: DataPlane, transfer: Transfer, unit_bytes: int) -> tuple[Outcome, Plan]:
        """Read a window, while the owner computes its checksums.

        It succeeds if the bytes read have those checksums, whether the owner has written meanwhile
        or not.
        """
        units = _units(transfer, unit_bytes)

        def sum_local() -> tuple[Outcome, Sums]:
            channel = data.channel_for(units)
            assert channel is not None  # as it reads and sums
            return channel.read_and_sum(units)

        outcome, different = _compare(data, transfer, units, sum_local)
        if outcome.code in {Code.SYSTEM, Code.REMOTE_FAULT}:
            # The lanes may succeed; they must not wait for the lane that the question takes.
            return self._move(data, transfer, unit_bytes)
        return outcome, different

    def _move(self, data: DataPlane, transfer: Transfer, unit_bytes: int) -> tuple[Outcome, Plan]:
        """Move a segment, then compare the checksums of both sides."""
        moved = data.run(transfer)
        if moved.code != Code.OK:
            return moved, NO_PLAN
        units = _units(transfer, unit_bytes)

        def sum_local() -> tuple[Outcome, Sums]:
            outcome, sums = self._node.checksum(
                units.local, units.length, units.local_ref, units.deadline_ns
            )
            return outcome._replace(moved_bytes=moved.moved_bytes), sums

        return _compare(data, transfer, units, sum_local)


def _compare(
    data: DataPlane,
    transfer: Transfer,
    units: Transfer,
    sum_local: Callable[[], tuple[Outcome, Sums]],
) -> tuple[Outcome, Plan]:
    """Compare the peer's checksums with those that `sum_local` computes meanwhile."""
    if not len(units.length):
        return sum_local()[0], NO_PLAN
    question = data.lanes.ask_checksum(units)
    found = None
    try:
        found, local_sums = sum_local()
    finally:  # an interrupt, too, must not leave a lane taken
        if found is None or found.code != Code.OK:
            question()
    if found.code == Code.OK:
        answered, remote_sums = question()
        found = answered._replace(moved_bytes=found.moved_bytes)
    if found.code != Code.OK:
        return found._replace(descriptor=_holder(transfer, units, found.descriptor)), NO_PLAN
    places = np.flatnonzero(local_sums != remote_sums)
    if not len(places):
        return found, NO_PLAN
    different = Plan.of(*units.plan.rows[:, places])
    return found._replace(code=Code.CORRUPT), different


def _units(transfer: Transfer, unit_bytes: int) -> Transfer:
    """Return the transfer in pieces of one block (slot) each, which are compared one by one."""
    units = cut(transfer.plan, unit_bytes)
    return transfer if units is transfer.plan else replace(transfer, plan=units)


def _within(outcome: Outcome, part: slice, moved_bytes: int) -> Outcome:
    """Return the outcome of a part as the outcome of the whole."""
    at = outcome.descriptor + part.start if outcome.descriptor >= 0 else -1
    return outcome._replace(descriptor=at, moved_bytes=moved_bytes)


def _part(transfer: Transfer, part: slice, version: int) -> Transfer:
    if part == slice(0, len(transfer.length)):
        return transfer
    return replace(transfer, plan=Plan.of(*transfer.plan.rows[:, part]), version=version)


def _holder(transfer: Transfer, units: Transfer, index: int) -> int:
    """Return the descriptor that contains a piece of `_units`; -1 for -1."""
    if index < 0 or units is transfer:
        return index
    addr = units.local[index]
    holds = (transfer.local <= addr) & (addr - transfer.local < transfer.length)
    return int(np.flatnonzero(holds)[0])
