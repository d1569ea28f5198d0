"""Log option keys that are unknown and probably misspelled."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from llm_datadist._options import keys
from llm_datadist._options.nearest import nearest_name

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["log_unknown_keys"]

logger = logging.getLogger("llm_datadist")

_PREFIX: Final = "llm."
#: Keys of the original that mean nothing to this package.
_IGNORED: Final = {"llm.Role"}
_KNOWN: Final = _IGNORED | {
    value for value in vars(keys).values() if isinstance(value, str) and value.startswith(_PREFIX)
}
_logged: set[str] = set()


def log_unknown_keys(operation: str, options: Iterable[object]) -> None:
    """Log each unknown key that starts with "llm.", once per process.

    A key close to a known one is a warning, which names that one; any other is for information, as
    frameworks pass keys of other releases. Keys of other prefixes belong to the frameworks.
    """
    for key in options:
        if not (isinstance(key, str) and key.startswith(_PREFIX)) or key in _KNOWN | _logged:
            continue
        _logged.add(key)
        nearest = nearest_name(key, _KNOWN)
        if nearest:
            logger.warning(
                "%s: option %s is unknown and ignored; did you mean %s?", operation, key, nearest
            )
        else:
            logger.info("%s: option %s is unknown and ignored", operation, key)
