"""Check the permissions of files that hold a secret or a private key.

Source: api.md 3 (extensions).
"""

from __future__ import annotations

import logging
import stat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_datadist._options.reader import OptionReader

__all__ = ["check_private"]

logger = logging.getLogger("llm_datadist")

_warned: set[str] = set()
"""Files that a warning of this process has named."""


def check_private(reader: OptionReader, source: str, name: str) -> None:
    """Warn once when others can read a file that must stay private.

    Args:
        reader: Options of the call.
        source: Option or variable that names the file.
        name: The file.

    Raises:
        LLMException: LLM_PARAM_INVALID: every user can replace or write it.
    """
    path = Path(name).absolute()
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        return  # such as a pipe, which has only one reader
    for place in (path, *path.parents, *path.resolve().parents):
        mode = place.stat().st_mode
        if mode & stat.S_IWOTH and not (stat.S_ISDIR(mode) and mode & stat.S_ISVTX):
            problem = f"is read from the file {name!r}, and every user can write to {str(place)!r}"
            raise reader.invalid(source, problem, f"run chmod o-w {place} and write a new file")
    if stat.S_IMODE(found.st_mode) & 0o077 and name not in _warned:
        _warned.add(name)
        logger.warning(
            "%s: option %s is read from the file %s, which other users can read (mode %04o); "
            "run chmod 600 %s",
            reader.operation,
            source,
            name,
            stat.S_IMODE(found.st_mode),
            name,
        )
