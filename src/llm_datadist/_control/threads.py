"""Threads that cannot be had, in the words of the API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_datadist._errors import LLMStatusCode, fail

if TYPE_CHECKING:
    import threading

__all__ = ["REMEDY", "start"]

REMEDY: Final = (
    "raise the limit of threads (ulimit -u, or pids.max of the cgroup) or of address space "
    "(ulimit -v)"
)


def start(thread: threading.Thread, operation: str) -> None:
    """Start a thread.

    Raises:
        LLMException: LLM_FAILED: there are as many as may be, or the interpreter ends.
    """
    try:
        thread.start()
    except RuntimeError as error:
        problem = f"thread {thread.name} cannot be started ({error})"
        raise fail(LLMStatusCode.LLM_FAILED, operation, problem, REMEDY) from error
