"""Exits of peers of a `PeerGroup`, as types instead of return codes."""

from __future__ import annotations

import signal as signals
from typing import Any, TypeAlias

import msgspec

Value: TypeAlias = Any
"""Plain data: None, bool, int, float, str, bytes, and lists and dicts of these."""


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """The body returned.

    Attributes:
        value: What it returned; tuples have become lists.
    """

    value: Value = None


class Raised(msgspec.Struct, frozen=True, tag="raised"):
    """The body raised.

    Attributes:
        type_name: Class of the exception, as `LLMException`.
        text: The exception's text.
        status: Name of its status code, as `LLM_TIMEOUT`; None for an exception without one.
        traceback: The formatted traceback.
    """

    type_name: str
    text: str
    status: str | None = None
    traceback: str = ""


class Killed(msgspec.Struct, frozen=True, tag="killed"):
    """The process ended by a signal, before or after its body.

    Attributes:
        signal: Number of the signal.
    """

    signal: int

    def __str__(self) -> str:
        return f"killed by {signals.Signals(self.signal).name}"


class Exited(msgspec.Struct, frozen=True, tag="exited"):
    """The process ended by itself without a report, or with a status although its body returned.

    Attributes:
        code: Exit status.
    """

    code: int


class TimedOut(msgspec.Struct, frozen=True, tag="timed_out"):
    """The peer had not ended when the wait for it did; it runs on.

    Attributes:
        waited_s: How long the wait was.
    """

    waited_s: float


Exit: TypeAlias = Finished | Raised | Killed | Exited | TimedOut


class PeerFailed(AssertionError):
    """A peer did not end as the caller expected.

    Attributes:
        peer: Name of the peer.
        exit: How it ended.
    """

    def __init__(self, peer: str, exit: Exit) -> None:  # noqa: A002 - the field's word
        detail = exit.traceback if isinstance(exit, Raised) else str(exit)
        super().__init__(f"peer {peer}: {type(exit).__name__}: {detail}")
        self.peer = peer
        self.exit = exit


class GroupClosed(Exception):
    """The group ended while a peer waited for a message, an event or a barrier."""
