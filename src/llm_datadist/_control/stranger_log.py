"""Rate limit for log lines that unauthenticated peers cause: one per source and minute."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_SOURCES", "WINDOW_SECONDS", "StrangerLog"]

logger = logging.getLogger("llm_datadist")

WINDOW_SECONDS: Final = 60.0
MAX_SOURCES: Final = 256
"""Further sources are counted together."""
_OTHERS: Final = "other addresses"


@dataclass(slots=True)
class _Source:
    level: int
    name: str
    num_suppressed: int = 0


@final
class StrangerLog:
    """Logs the first line about a source, then once a minute how many were suppressed.

    Levels are counted separately, so that debug lines do not suppress a warning. An IPv6 source is
    its /64, since one host may have all addresses of it. Loop thread only.

    Args:
        later: Like `call_later` of a loop; None for that of the running loop.
    """

    def __init__(self, later: Callable[[float, Callable[[], None]], object] | None = None) -> None:
        self._later = later
        self._sources: dict[tuple[int, str], _Source] = {}

    def log(self, level: int, host: str, text: str, *args: object) -> None:
        """Log a line about a source, or count it as suppressed."""
        name = _source(host)
        if (level, name) not in self._sources and len(self._sources) >= MAX_SOURCES:
            name = _OTHERS
        source = self._sources.get((level, name))
        if source is not None:
            source.num_suppressed += 1
            return
        self._sources[level, name] = source = _Source(level, name)
        self._watch(source)
        logger.log(level, text, *args)

    def _watch(self, source: _Source) -> None:
        later = asyncio.get_running_loop().call_later if self._later is None else self._later
        later(WINDOW_SECONDS, lambda: self._log_suppressed(source))

    def _log_suppressed(self, source: _Source) -> None:
        count, source.num_suppressed = source.num_suppressed, 0
        if not count:
            del self._sources[source.level, source.name]
            return
        self._watch(source)
        logger.log(
            source.level,
            "%d more connections from %s were closed within %d s; their lines were suppressed",
            count,
            source.name,
            WINDOW_SECONDS,
        )


def _source(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        return f"{ipaddress.IPv6Address(int(address) >> 64 << 64)}/64"
    return host
