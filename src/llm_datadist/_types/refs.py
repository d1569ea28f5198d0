"""References to guards of the published page."""

from __future__ import annotations

from typing import Final, TypeAlias

__all__ = ["NO_REF", "Ref"]

Ref: TypeAlias = tuple[int, int]
"""A guard's index, and its value when it was looked up: a reader that keeps both notices every
change."""

NO_REF: Final[Ref] = (0, 0)
"""Names no guard: there is nothing to check."""
