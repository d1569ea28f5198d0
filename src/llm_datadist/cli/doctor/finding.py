"""One finding of `doctor`: what was seen, whether that is good, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Finding", "State", "ok", "problem", "split_remedy", "warning"]


class State(str, Enum):
    """How good a finding is. Only problems make the exit status 1."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found.

    Attributes:
        subject: What was looked at, in a word or two.
        state: How good it is.
        seen: What was seen.
        remedy: What to do; empty if and only if the state is OK.

    Raises:
        ValueError: The state and the remedy do not fit together.
    """

    subject: str
    state: State
    seen: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if (self.state is State.OK) is bool(self.remedy):
            raise ValueError(f"{self.subject}: {self.state.value} with remedy {self.remedy!r}")


def ok(subject: str, seen: str) -> Finding:
    """Return a finding that needs no remedy."""
    return Finding(subject, State.OK, seen)


def warning(subject: str, seen: str, remedy: str) -> Finding:
    """Return a finding that costs speed or safety, or matters only to some programs."""
    return Finding(subject, State.WARNING, seen, remedy)


def problem(subject: str, seen: str, remedy: str) -> Finding:
    """Return a finding that keeps instances from working."""
    return Finding(subject, State.PROBLEM, seen, remedy)


def split_remedy(text: str, otherwise: str) -> tuple[str, str]:
    """Return what an error text of the library says, and its remedy.

    Args:
        text: "what is wrong; what to do about it".
        otherwise: Remedy for a text without one.
    """
    seen, separator, remedy = text.rpartition("; ")
    return (seen, remedy) if separator else (text, otherwise)
