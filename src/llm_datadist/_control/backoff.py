"""Growing pauses between attempts."""

from __future__ import annotations

from typing import final

__all__ = ["Backoff"]


@final
class Backoff:
    """Pauses between the attempts of one loop; the caller sleeps. Not thread-safe.

    Args:
        first: The first pause, in seconds.
        longest: Limit of a pause; may be changed between attempts.
        factor: By which each pause is longer than the one before.
    """

    __slots__ = ("_factor", "_first", "_pause", "longest")

    def __init__(self, first: float, longest: float, factor: float = 2.0) -> None:
        self.longest = longest
        self._first = self._pause = first
        self._factor = factor

    def next(self) -> float:
        """Return the pause before the next attempt."""
        pause = min(self._pause, self.longest)
        self._pause = self._factor * pause
        return pause

    def reset(self) -> None:
        """Start again with the first pause."""
        self._pause = self._first
