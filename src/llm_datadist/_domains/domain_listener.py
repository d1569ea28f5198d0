"""The listener for the domains of one instance."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final, final

from llm_datadist._links import same_address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_datadist._links import LinkTable
    from llm_datadist._protocol.rank_table import Address

__all__ = ["DomainListener"]

logger = logging.getLogger("llm_datadist")

_ANY_HOST: Final = frozenset({"0.0.0.0", "::"})


@final
class DomainListener:
    """Opens listeners where the members of a domain can find this instance. Thread-safe.

    The first domain opens a listener at its first candidate address that can be bound; later
    domains use it too. A further listener is opened only for a domain whose candidates the open
    listeners do not serve.

    Args:
        links: Opens the listeners, and closes them when it is closed.
    """

    def __init__(self, links: LinkTable) -> None:
        self._links = links
        self._opened: list[Address] = []
        self._opening = threading.Lock()

    @property
    def addresses(self) -> list[Address]:
        """Addresses at which dialers are accepted, including the instance's own listener."""
        own = self._links.listen_address
        return [*self._opened] if own is None else [own, *self._opened]

    def open(self, candidates: Sequence[Address]) -> str:
        """Listen at one of the candidates; return "", or the reason why none can be bound."""
        with self._opening:
            return self._open(candidates)

    def _open(self, candidates: Sequence[Address]) -> str:
        open_already = self.addresses
        if any(_serves(address, wanted) for wanted in candidates for address in open_already):
            return ""
        problems = []
        for host, port in candidates:
            try:
                self._opened.append(self._links.open_listener(host, port))
            except (OSError, UnicodeError) as error:  # UnicodeError: a malformed name
                problems.append(f"{host} port {port}: {error}")
            else:
                logger.debug("domains are accepted at %s port %d", host, port)
                return ""
        return "; ".join(problems) or "the rank table has no address for this member alone"


def _serves(address: Address, wanted: Address) -> bool:
    return same_address(address, wanted) or (address[0] in _ANY_HOST and address[1] == wanted[1])
