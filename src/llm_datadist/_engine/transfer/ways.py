"""By which way the bytes of a transfer between unequal layouts move, and why."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from llm_datadist._plan.layouts import (
    gathering_is_faster,
    share_if_gathered,
    share_of_full_rate,
)

if TYPE_CHECKING:
    from llm_datadist._engine.link.data_plane import DataPlane
    from llm_datadist._plan import Plan

__all__ = ["Way", "reads_gathered", "way_of"]


@cache
def _cores() -> int:
    return len(os.sched_getaffinity(0))


class Way(NamedTuple):
    """How the bytes of a plan move; see `RankReport`."""

    name: str
    expected_rate: float
    why: str


def reads_gathered(data: DataPlane, plan: Plan, *, write: bool) -> bool:
    """Return whether the peer's threads gather the pieces of a plan, which is then faster.

    Args:
        data: The link.
        plan: The descriptors.
        write: The local side is the source.
    """
    return not write and gathering_is_faster(plan, _cores()) and data.gathers(plan.remote)


def way_of(data: DataPlane, plan: Plan, *, write: bool, whole: bool = False) -> Way:
    """Return the way that a transfer of the plan takes now, and why.

    Args:
        data: The link.
        plan: The descriptors.
        write: The local side is the source.
        whole: Whether whole blocks of equal layouts move, which are never gathered.
    """
    if data.path != "host":
        share = share_of_full_rate(plan, write=write, over_lanes=True)
        return Way("lanes", share, f"the link uses the backend {data.path}")
    direct = share_of_full_rate(plan, write=write, over_lanes=False)
    if write:
        return Way("direct", direct, "the peer's threads read the pieces of a push")
    if whole:
        return Way("direct", direct, "whole blocks of equal layouts are read as they are")
    gathered = share_if_gathered(plan)
    rates = f"in pieces {direct:.2f} of the full rate is expected, gathered {gathered:.2f}"
    if not gathering_is_faster(plan, _cores()):
        return Way("direct", direct, rates)
    if not data.gathers(plan.remote):
        return Way("direct", direct, f"{rates}, but the peer does not gather this memory now")
    return Way("gathered", gathered, rates)
