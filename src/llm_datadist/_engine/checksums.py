"""End-to-end checks of transfers: both sides' memory has the same CRC-32C after the bytes moved.

Whatever the data path was: each side's native threads read their own memory, and the initiator
compares. A transfer is checked in segments, each right after it was moved, while it is in the
caches of the processors; on the same host a read is summed up as it arrives, in fewer steps.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias, final

import numpy as np

from llm_datadist._backends.outcomes import Code, Outcome
from llm_datadist._engine.failures import NO_PLAN
from llm_datadist._engine.faults import fault_of
from llm_datadist._errors import Fault
from llm_datadist._plan import Plan, cut, segments

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_datadist._backends.base import Transfer
    from llm_datadist._backends.node import Checksums as Sums
    from llm_datadist._engine.engine import Engine
    from llm_datadist._engine.link_data import LinkData
    from llm_datadist._registry import LocalCache, RemoteCache

    Destination: TypeAlias = tuple[int, LocalCache | RemoteCache | None]

SEGMENT_BYTES = 4 << 20
WINDOW_BYTES = 16 << 20
"""Of a question that is asked before its bytes are read: both sides read them while the processors'
shared cache has them."""

FEATURE = "crc32c"
"""In the endpoint of an instance that answers questions for checksums."""

_MOST_REPORTED = 4096
_NO_SUMS = np.empty(0, np.uint32)


def checkable(plan: Plan, unit_bytes: int) -> Plan:
    """Return the plan with descriptors short enough for a segment, cut between blocks (slots)."""
    return cut(plan, max(SEGMENT_BYTES // unit_bytes, 1) * min(unit_bytes, SEGMENT_BYTES))


def faults_of(different: Plan, destination: Destination, *, write: bool) -> tuple[Fault, ...]:
    """Name the slots or blocks at the destination that differ from their source.

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
    """Checked transfers of one instance. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._node = engine.node

    def run(self, data: LinkData, transfer: Transfer, unit_bytes: int) -> tuple[Outcome, Plan]:
        """Carry out a transfer by a `checkable` plan, and check it.

        Args:
            data: The link.
            transfer: What to move.
            unit_bytes: Of a block (slot): what is compared as one.

        Returns:
            The outcome; its code is CORRUPT when something differs, and then what. What comes after
            the segment (window) that it is in was not moved.
        """
        # Where a read needs no lane, the source's checksums are computed while it goes on.
        at_once = not transfer.write and not data.channel.innermost.reads_use_lanes
        moved_bytes, version = 0, transfer.version
        for part in segments(transfer.length, WINDOW_BYTES if at_once else SEGMENT_BYTES):
            window = _part(transfer, part, version)
            outcome, different = self._window(data, window, unit_bytes, at_once=at_once)
            moved_bytes += outcome.moved_bytes
            if outcome.code != Code.OK:
                return _within(outcome, part, moved_bytes), different
            version = 0  # it was current when the transfer began; from there on guards tell
        return Outcome(Code.OK, moved_bytes=moved_bytes), NO_PLAN

    def _window(
        self, data: LinkData, transfer: Transfer, unit_bytes: int, *, at_once: bool
    ) -> tuple[Outcome, Plan]:
        """Move what one question for checksums is about, and check it.

        A read is good if it gives the bytes that the checksums are of, whether the owner has
        written in between or not.
        """
        if not len(transfer.length):
            return data.channel.run(transfer), NO_PLAN
        units = _units(transfer, unit_bytes)
        answer = data.lanes.ask_checksum(units) if at_once else None
        moved = None
        try:
            moved, here = (at_once and _at_one_go(data, transfer, units)) or self._move(
                data, transfer, unit_bytes
            )
        finally:  # an interrupt, too, must not leave a lane taken
            if answer is not None and (moved is None or moved.code != Code.OK):
                answer()
        if moved.code != Code.OK:
            return moved, NO_PLAN
        outcome, there = (answer or data.lanes.ask_checksum(units))()
        if outcome.code != Code.OK:
            at = _holder(transfer, units, outcome.descriptor)
            return Outcome(outcome.code, outcome.sys_errno, at, moved.moved_bytes), NO_PLAN
        places = np.flatnonzero(here != there)
        if not len(places):
            return moved, NO_PLAN
        different = Plan(units.local[places], units.remote[places], units.length[places], 0)
        return Outcome(Code.CORRUPT, moved_bytes=moved.moved_bytes), different

    def _move(self, data: LinkData, transfer: Transfer, unit_bytes: int) -> tuple[Outcome, Sums]:
        """Move segment by segment, and compute the own side's checksums of each while it is hot."""
        moved_bytes, version, sums = 0, transfer.version, []
        for part in segments(transfer.length, SEGMENT_BYTES):
            segment = _part(transfer, part, version)
            outcome = data.channel.run(segment)
            moved_bytes += outcome.moved_bytes
            if outcome.code != Code.OK:
                return _within(outcome, part, moved_bytes), _NO_SUMS
            units = _units(segment, unit_bytes)
            outcome, found = self._node.checksum(
                units.local, units.length, units.local_ref, units.deadline_ns
            )
            if outcome.code != Code.OK:
                outcome = outcome._replace(descriptor=_holder(segment, units, outcome.descriptor))
                return _within(outcome, part, moved_bytes), _NO_SUMS
            sums.append(found)
            version = 0
        return Outcome(Code.OK, moved_bytes=moved_bytes), np.concatenate(sums)


def _at_one_go(data: LinkData, transfer: Transfer, units: Transfer) -> tuple[Outcome, Sums] | None:
    """Read a window and take the checksums of what arrives, where the channel does that."""
    done = data.channel.read_and_sum(units)
    if done is None:
        return None
    outcome, sums = done
    return outcome._replace(descriptor=_holder(transfer, units, outcome.descriptor)), sums


def _units(transfer: Transfer, unit_bytes: int) -> Transfer:
    """Return what is compared: the same bytes in pieces that are of one block (slot) each."""
    whole = Plan(transfer.local, transfer.remote, transfer.length, 0)
    units = cut(whole, unit_bytes)
    if units is whole:
        return transfer
    return replace(transfer, local=units.local, remote=units.remote, length=units.length)


def _within(outcome: Outcome, part: slice, moved_bytes: int) -> Outcome:
    """Return the outcome of a part as that of the whole."""
    at = outcome.descriptor + part.start if outcome.descriptor >= 0 else -1
    return outcome._replace(descriptor=at, moved_bytes=moved_bytes)


def _part(transfer: Transfer, part: slice, version: int) -> Transfer:
    if part == slice(0, len(transfer.length)):
        return transfer
    return replace(
        transfer,
        local=transfer.local[part],
        remote=transfer.remote[part],
        length=transfer.length[part],
        version=version,
    )


def _holder(transfer: Transfer, units: Transfer, index: int) -> int:
    """Return the descriptor that a piece of `_units` is of; -1 for -1."""
    if index < 0 or units is transfer:
        return index
    addr = units.local[index]
    holds = (transfer.local <= addr) & (addr - transfer.local < transfer.length)
    return int(np.flatnonzero(holds)[0])
