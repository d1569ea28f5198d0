"""Division of a plan into parts that are moved, and looked at, one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llm_datadist._plan.layout import Plan

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    return Plan(
        plan.local[origin] + offset,
        plan.remote[origin] + offset,
        np.minimum(length[origin] - offset, limit),
        plan.total_bytes,
    )


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
