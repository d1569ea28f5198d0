"""Texts of others in log lines and exceptions.

A peer, or a stranger, may send any characters: newlines that look like further log lines, sequences
that a terminal obeys, a megabyte. A log line or an error shows `shown` of such a text instead.
"""

from __future__ import annotations

from typing import Final

__all__ = ["MAX_SHOWN", "shown"]

MAX_SHOWN: Final = 1000
"""Characters of one text."""


def shown(text: str, limit: int = MAX_SHOWN) -> str:
    """Return a text as it may be printed: one line, nothing that a terminal obeys, not too long.

    What cannot be printed becomes an escape as in Python's literals. The text of a text that was
    shown before is the same.
    """
    more = ""
    if len(text) > limit:
        more = f"... ({len(text)} characters)"
        text = text[: max(0, limit - len(more))]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
        if len(text) + len(more) > limit:
            more = more or "..."
            text = text[: max(0, limit - len(more))]
    return text + more
