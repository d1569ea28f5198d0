"""Absolute deadlines on the monotonic clock."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TypeVar, final

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

if TYPE_CHECKING:
    from collections.abc import Awaitable

__all__ = ["Deadline"]

_T = TypeVar("_T")


@final
class Deadline:
    """A time limit on the monotonic clock.

    Args:
        seconds: Time left from now.
    """

    __slots__ = ("seconds", "when")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.when = time.monotonic() + seconds

    def remaining(self) -> float:
        """Return the seconds left; 0 when it has passed."""
        return max(0.0, self.when - time.monotonic())

    def at_most(self, seconds: float) -> Deadline:
        """Return this deadline, or one `seconds` from now when that is earlier."""
        return Deadline(min(seconds, self.remaining()))

    async def limit(self, work: Awaitable[_T]) -> _T:
        """Await `work`; at the deadline cancel it and raise asyncio.TimeoutError.

        The work runs in the caller's task. asyncio.wait_for uses a task of its own, and loses its
        result, for example a socket, if the caller is canceled at the moment when it finishes.
        """
        async with timeout(self.remaining()):
            return await work
