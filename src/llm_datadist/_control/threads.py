"""Start threads, with the API's error when the system refuses."""

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
        LLMException: LLM_FAILED: the limit of threads is reached, or the interpreter is exiting.
    """
    try:
        thread.start()
    except RuntimeError as error:
        problem = f"thread {thread.name} cannot be started ({error})"
        raise fail(LLMStatusCode.LLM_FAILED, operation, problem, REMEDY) from error
