"""End-to-end checks of transfers: both sides' memory has the same CRC-32C after the bytes moved.

Whatever the data path was: each side's native threads read their own memory, and the initiator
compares. A transfer is checked in segments, each right after it was moved, while it is in the
caches of the processors.
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
    from collections.abc import Callable, Iterator

    from llm_datadist._backends.base import Transfer
    from llm_datadist._backends.node import Checksums as Sums
    from llm_datadist._engine.engine import Engine
    from llm_datadist._engine.link_data import LinkData
    from llm_datadist._registry import LocalCache, RemoteCache

    Destination: TypeAlias = tuple[int, LocalCache | RemoteCache | None]

SEGMENT_BYTES = 4 << 20
FEATURE = "crc32c"
"""In the endpoint of an instance that answers questions for checksums."""

_MOST_REPORTED = 4096


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
            the segment that it is in was not moved.
        """
        moved_bytes, version = 0, transfer.version
        for part in segments(transfer.length, SEGMENT_BYTES):
            outcome, different = self._segment(data, _part(transfer, part, version), unit_bytes)
            moved_bytes += outcome.moved_bytes
            if outcome.code != Code.OK:
                at = outcome.descriptor + part.start if outcome.descriptor >= 0 else -1
                return outcome._replace(descriptor=at, moved_bytes=moved_bytes), different
            version = 0  # it was current when the transfer began; from there on guards tell
        return Outcome(Code.OK, moved_bytes=moved_bytes), NO_PLAN

    def _segment(self, data: LinkData, transfer: Transfer, unit_bytes: int) -> tuple[Outcome, Plan]:
        """Move one segment and check it.

        Where a read needs no lane, the source's checksums are computed while it goes on. It is good
        if it gives what they are of, whether the owner has written in between or not.
        """
        if not len(transfer.length):
            return data.channel.run(transfer), NO_PLAN
        whole = Plan(transfer.local, transfer.remote, transfer.length, 0)
        units = cut(whole, unit_bytes)
        checked = replace(transfer, local=units.local, remote=units.remote, length=units.length)
        at_once = not transfer.write and not data.channel.innermost.reads_use_lanes
        answer = data.lanes.ask_checksum(checked) if at_once else None
        outcome = data.channel.run(transfer)
        if outcome.code != Code.OK:
            if answer is not None:
                answer()
            return outcome, NO_PLAN
        found, places = self._compare(checked, answer or data.lanes.ask_checksum(checked))
        if found.descriptor >= 0 and units is not whole:
            at = units.local[found.descriptor]  # in the segment's count, which has fewer
            found = found._replace(descriptor=_holder(whole, int(at)))
        different = Plan(units.local[places], units.remote[places], units.length[places], 0)
        return found._replace(moved_bytes=outcome.moved_bytes), different

    def _compare(
        self, transfer: Transfer, answer: Callable[[], tuple[Outcome, Sums]]
    ) -> tuple[Outcome, list[int]]:
        """Compare both sides of each descriptor; the outcome is CORRUPT with those that differ."""
        here_outcome, here = self._node.checksum(
            transfer.local, transfer.length, transfer.local_ref, transfer.deadline_ns
        )
        there_outcome, there = answer()
        for outcome in (here_outcome, there_outcome):
            if outcome.code != Code.OK:
                return outcome, []
        different: list[int] = np.flatnonzero(here != there).tolist()
        return (Outcome(Code.CORRUPT) if different else there_outcome), different


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


def _holder(plan: Plan, local_addr: int) -> int:
    """Return the descriptor that has that local address."""
    addr = np.uint64(local_addr)
    holds = (plan.local <= addr) & (addr - plan.local < plan.length)
    return int(np.flatnonzero(holds)[0])
