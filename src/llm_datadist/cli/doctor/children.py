"""Programs that `doctor` runs in processes of their own, because they may crash or hang."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["ChildFailed", "python", "run_json"]

_SECONDS = 60.0


class ChildFailed(Exception):
    """A program did not print its result; the text says how it ended."""


def python(program: str, *arguments: str) -> list[str]:
    """Return the command for a program of this folder that needs the standard library only."""
    path = Path(__file__).with_name(f"{program}.py")
    return [sys.executable, "-I", "-S", str(path), *arguments]


def run_json(command: list[str], seconds: float = _SECONDS) -> dict[str, Any]:
    """Run a program, and return the JSON object in the last line of its output.

    Raises:
        ChildFailed: It crashed, ran out of time, could not be started, or printed none.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ChildFailed(f"it did not end within {seconds:.0f} s") from None
    except OSError as error:
        raise ChildFailed(f"it could not be started: {error.strerror or error}") from None
    if done.returncode < 0:
        raise ChildFailed(f"it ended by {_signal_name(-done.returncode)}")
    lines = done.stdout.strip().splitlines()
    try:
        found = json.loads(lines[-1])
    except (IndexError, ValueError):
        said = done.stderr.strip().splitlines()
        why = said[-1] if said else f"exit status {done.returncode}"
        raise ChildFailed(f"it printed no result ({why})") from None
    return dict(found)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
