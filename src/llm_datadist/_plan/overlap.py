"""Overlap between source and destination of a copy within one process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llm_datadist._plan.layout import Plan

__all__ = ["first_overlap"]


def first_overlap(plan: Plan) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Return a local range that overlaps a remote one, as (address, length) each, or None.

    Both sides must be in one address space. A range onto itself moves nothing and does not count.
    """
    local, remote, length = plan.rows
    if not len(length):
        return None
    if (remote + length).max() <= local.min() or (local + length).max() <= remote.min():
        return None
    order = remote.argsort(kind="stable")
    starts = remote[order]
    furthest = np.maximum.accumulate(starts + length[order])  # end of any range up to this one
    before = np.searchsorted(starts, local + length, side="left")
    meets = (before > 0) & (furthest[before - 1] > local) & (local != remote)
    if not meets.any():
        return None
    at = int(meets.argmax())
    met = (remote < local[at] + length[at]) & (remote + length > local[at])
    other = int(met.argmax())
    return (int(local[at]), int(length[at])), (int(remote[other]), int(length[other]))
