"""Division of plans: into segments that are checked one by one, and at allocation borders."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llm_datadist._plan.layout import Plan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray


def cut(plan: Plan, limit_bytes: int) -> Plan:
    """Return the plan with no descriptor longer than the limit, and none that is empty."""
    length = plan.length
    if not len(length) or (int(length.max()) <= limit_bytes and int(length.min()) > 0):
        return plan
    limit = np.uint64(limit_bytes)
    counts = ((length + limit - np.uint64(1)) // limit).astype(np.int64)
    origin = np.repeat(np.arange(len(length)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    offset = (np.arange(len(origin)) - first).astype(np.uint64) * limit
    return Plan.of(
        plan.local[origin] + offset,
        plan.remote[origin] + offset,
        np.minimum(length[origin] - offset, limit),
        plan.total_bytes,
    )


def cut_between(plan: Plan, local: Sequence[int], remote: Sequence[int]) -> Plan:
    """Return the plan with no descriptor that crosses one of the given addresses.

    Args:
        plan: Whose neighbors may have been made one.
        local, remote: Where something else begins on either side, a tensor say; in any order.
    """
    local_starts, remote_starts = (
        np.sort(np.array(starts, np.uint64)) for starts in (local, remote)
    )
    while True:
        room = np.minimum(_room(local_starts, plan.local), _room(remote_starts, plan.remote))
        beyond = plan.length > room
        if not beyond.any():
            return plan
        origin = np.repeat(np.arange(len(room)), 1 + beyond)
        is_rest = np.append(False, origin[1:] == origin[:-1])
        offset = np.where(is_rest, room[origin], np.uint64(0))
        length = np.minimum(plan.length, room)[origin]
        length[is_rest] = (plan.length - room)[beyond]
        plan = Plan.of(
            plan.local[origin] + offset, plan.remote[origin] + offset, length, plan.total_bytes
        )


def _room(starts: NDArray[np.uint64], addresses: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Bytes from each address to the next start."""
    ends = np.append(starts, np.uint64(2**64 - 1))
    room: NDArray[np.uint64] = ends[np.searchsorted(starts, addresses, side="right")] - addresses
    return room


def segments(length: NDArray[np.uint64], limit_bytes: int) -> Iterator[slice]:
    """Divide descriptors into runs of about `limit_bytes`, less than one descriptor more.

    One empty run for no descriptors.
    """
    if not len(length):
        yield slice(0, 0)
        return
    number = (np.cumsum(length) - np.uint64(1)) // np.uint64(limit_bytes)
    ends = [*(np.flatnonzero(np.diff(number)) + 1).tolist(), len(length)]
    begin = 0
    for end in ends:
        yield slice(begin, end)
        begin = end
