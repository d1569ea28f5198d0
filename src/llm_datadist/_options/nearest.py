"""The name that was probably meant by a misspelled one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["nearest_name"]


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """Return the name that is nearest to a misspelled one, whatever the case; None if none is."""
    import difflib  # noqa: PLC0415 - rarely needed

    by_lower = {known.lower().replace("_", ""): known for known in names}
    found = difflib.get_close_matches(name.lower().replace("_", ""), by_lower, n=1, cutoff=0.75)
    return by_lower[found[0]] if found else None
