"""Outcomes of data-plane operations.

The only place where native codes are named in Python. `_engine.transfer.errors` turns them into
exceptions.
"""

from __future__ import annotations

from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    from llm_datadist._types.refs import Ref

    Checksums: TypeAlias = npt.NDArray[np.uint32]

ANY_ENTRY: Ref = (0xFFFFFFFF, 0)
"""Used instead of a cache: every descriptor must lie inside some accessible registered range."""


class Code(IntEnum):
    """Result of an operation."""

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
    """Set in Python: the checksums of the two sides differ after a transfer."""
    NO_PATH = 101
    """Set in Python: accelerator memory, and no engine can move it."""


OK: Final = Code.OK
"""The code of success for hot paths: Python 3.11 takes long to find a member of an enumeration."""


class Outcome(NamedTuple):
    """How an operation ended.

    Attributes:
        code: A `Code` (as a plain int on the hot path).
        sys_errno: errno behind the code, or 0.
        descriptor: Index of the descriptor that failed, or -1.
        moved_bytes: Bytes that were moved, also before a failure.
    """

    code: int
    sys_errno: int = 0
    descriptor: int = -1
    moved_bytes: int = 0


RawOutcome: TypeAlias = tuple[int, int, int, int]
"""The same as the native core returns it: code, errno, descriptor, moved bytes."""

as_outcome: Final[Callable[[RawOutcome], Outcome]] = partial(tuple.__new__, Outcome)
"""Make an Outcome of what the native core has returned, without a Python frame."""
