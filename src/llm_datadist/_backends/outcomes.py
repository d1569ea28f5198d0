"""Outcomes of data-plane operations: the native core's codes, and what they mean for a caller.

The one place where native codes are named in Python. `_engine.transfer.errors` turns them into
exceptions.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from llm_datadist._types.refs import Ref

    Checksums: TypeAlias = npt.NDArray[np.uint32]

ANY_ENTRY: Ref = (0xFFFFFFFF, 0)
"""Instead of a cache: every descriptor must lie inside some accessible registered range."""


class Code(IntEnum):
    """Result of an operation; grouped by what has to be rebuilt: request, link, instance."""

    OK = 0
    GONE = 1
    LOCAL_GONE = 2
    TIMEOUT = 3
    PEER_DEAD = 4
    REMOTE_FAULT = 5
    LOCAL_FAULT = 6
    DENIED = 7
    STALE = 8
    CLOSED = 9
    PROTOCOL = 10
    SYSTEM = 11
    CANCELLED = 12
    NO_LANE = 13
    CORRUPT = 100
    """Not of the native core: the two sides' checksums differ after a transfer."""
    NO_PATH = 101
    """Not of the native core: the bytes are an accelerator's, and the engine cannot move them."""


class Outcome(NamedTuple):
    """How an operation ended.

    Attributes:
        code: A `Code` (as a plain int on the hot path).
        sys_errno: errno behind the code, or 0.
        descriptor: The one at fault, or -1.
        moved_bytes: Bytes that were moved; they stay moved after a failure.
    """

    code: int
    sys_errno: int = 0
    descriptor: int = -1
    moved_bytes: int = 0
