"""Processes of a comparison. They end with the one that started them, stopped ones too."""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import signal
import weakref
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

__all__ = ["OUTPUT", "Started", "receive", "start"]

OUTPUT = "LLM_DATADIST_BENCH_OUTPUT"
"""Environment variable: whether the processes show their output; "1" or not."""

Started = tuple["BaseProcess", "Connection"]

_PR_SET_PDEATHSIG = 1
_started: weakref.WeakSet[BaseProcess] = weakref.WeakSet()


def start(
    executable: str, body: Callable[..., None], *arguments: object, daemon: bool = False
) -> Started:
    """Run `body(pipe, *arguments)`, a function of a module, in a new process.

    It does not see Ctrl-C: the process that started it ends it. It is killed with the thread that
    started it.

    Args:
        executable: Command that starts Python.
        body: The function.
        arguments: Of the function, after the pipe.
        daemon: Whether it has no processes of its own.

    Returns:
        The process, and the other end of its pipe.
    """
    spawn = multiprocessing.get_context("spawn")
    spawn.set_executable(executable)
    pipe, child_pipe = spawn.Pipe()
    resource_tracker.ensure_running()  # type: ignore[no-untyped-call,unused-ignore]  # unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the process inherits it
    try:
        process = spawn.Process(target=_main, args=(child_pipe, body, arguments), daemon=daemon)
        process.start()
        _started.add(process)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    child_pipe.close()
    return process, pipe


@atexit.register
def _kill_those_left() -> None:
    """Kill what was not ended: multiprocessing waits for it at exit, and it may be stopped."""
    for process in _started:
        if process.is_alive():
            process.kill()


def receive(process: BaseProcess, pipe: Connection, seconds: float | None = None) -> Any:  # noqa: ANN401
    """Return what a process sends next.

    Raises:
        RuntimeError: It sent that as its failure, has ended, or sent nothing in this time.
    """
    if seconds is not None and not pipe.poll(seconds):
        raise RuntimeError(f"no answer for {seconds:.0f} s")
    try:
        answer = pipe.recv()
    except (EOFError, OSError):
        process.join(1.0)
        raise RuntimeError(f"the process {_end(process.exitcode)}") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _end(exit_code: int | None) -> str:
    if exit_code is None:
        return "closed its pipe"
    if exit_code < 0:
        return f"was ended by {signal.Signals(-exit_code).name}"
    return f"ended with status {exit_code}"


def _main(pipe: Connection, body: Callable[..., None], arguments: tuple[object, ...]) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.environ.get(OUTPUT) == "0":
        null = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(null, stream)
        os.close(null)
    body(pipe, *arguments)
