"""What the runs of `llm-datadist bench` share: quiet processes, files, results and exit status."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from llm_datadist import LLMException
from llm_datadist.cli.bench import processes
from llm_datadist.cli.instances import sigterm_interrupts
from llm_datadist.cli.pictures import check_can_draw

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import RenderableType

__all__ = ["Outcome", "check_files", "exit_status", "print_result"]

_FAILED, _USAGE, _INTERRUPTED = 1, 2, 130
_FILE_WIDTH = 110


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        status: Exit status.
    """

    status: int = 0


@contextmanager
def exit_status(*, verbose: bool) -> Iterator[Outcome]:
    """Turn the errors of a run into a sentence and a status, and Ctrl-C and SIGTERM too.

    Args:
        verbose: Whether warnings of the library, the output of processes and tracebacks are shown.
    """
    outcome = Outcome()
    os.environ[processes.OUTPUT] = "1" if verbose else "0"
    logger = logging.getLogger("llm_datadist")
    level = logger.level
    if not verbose:
        logger.setLevel(logging.CRITICAL)
    try:
        with sigterm_interrupts():
            yield outcome
    except ValueError as problem:
        outcome.status = _say(str(problem), _USAGE)
    except LLMException as problem:
        outcome.status = _say(str(problem), _FAILED)
    except RuntimeError as problem:
        text = str(problem)
        if not verbose:
            text = f"{text.splitlines()[0]} (--verbose shows more)"
        outcome.status = _say(text, _FAILED)
    except OSError as problem:
        outcome.status = _say(f"{problem.filename}: {problem.strerror or problem}", _FAILED)
    except KeyboardInterrupt:
        outcome.status = _say("interrupted; the processes of the run have ended", _INTERRUPTED)
    finally:
        logger.setLevel(level)


def check_files(json_file: Path | None, plot_file: Path | None = None) -> None:
    """Check that the results can be written after the run.

    Raises:
        ValueError: They cannot.
    """
    if json_file is not None:
        directory = json_file.absolute().parent
        if not directory.is_dir():
            raise ValueError(f"--json {json_file}: there is no directory {directory}")
        if not os.access(json_file if json_file.exists() else directory, os.W_OK):
            raise ValueError(f"--json {json_file}: it cannot be written; give another place")
    if plot_file is not None:
        check_can_draw(plot_file)


def print_result(result: RenderableType) -> None:
    """Print tables on standard output, wide enough also where that is no terminal."""
    width = None if sys.stdout.isatty() else _FILE_WIDTH
    Console(width=width).print(result, highlight=False)


def _say(text: str, status: int) -> int:
    console = Console(stderr=True)
    console.print(f"[bold red]error:[/] {escape(text)}", highlight=False, soft_wrap=True)
    return status
