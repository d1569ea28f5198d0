"""Make texts of peers safe for log lines and exceptions.

A peer may send any characters: newlines that imitate log lines, terminal control sequences, a
megabyte of text. Log lines and errors show such a text only after `shown`.
"""

from __future__ import annotations

from typing import Final

__all__ = ["MAX_SHOWN", "shown"]

MAX_SHOWN: Final = 1000
"""Characters of one text."""


def shown(text: str, limit: int = MAX_SHOWN) -> str:
    """Return a printable form of a text: one line, no control characters, limited length.

    Unprintable characters become escapes as in Python literals. Applying it twice changes nothing.
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
