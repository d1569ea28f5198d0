"""Where an instance accepts the dialers of its domains."""

from __future__ import annotations

import logging
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
    """The listener for the domains of one instance; one call at a time.

    The first domain opens one at its first candidate that can be bound, and the others use it. A
    further one is opened only for a domain whose candidates the open ones do not serve, because its
    members could not find this instance otherwise.

    Args:
        links: Opens listeners, and closes them when it is closed.
    """

    def __init__(self, links: LinkTable) -> None:
        self._links = links
        self._opened: list[Address] = []

    @property
    def addresses(self) -> list[Address]:
        """Where dialers are accepted; the instance's own listener counts."""
        own = self._links.listen_address
        return [*self._opened] if own is None else [own, *self._opened]

    def open(self, candidates: Sequence[Address]) -> str:
        """Listen at one of the candidates; return "", or why that is at none of them."""
        open_already = self.addresses
        if any(_serves(address, wanted) for wanted in candidates for address in open_already):
            return ""
        problems = []
        for host, port in candidates:
            try:
                self._opened.append(self._links.open_listener(host, port))
            except (OSError, UnicodeError) as error:  # the latter for a malformed name
                problems.append(f"{host} port {port}: {error}")
            else:
                logger.debug("domains are accepted at %s port %d", host, port)
                return ""
        return "; ".join(problems) or "the rank table has no address for this member alone"


def _serves(address: Address, wanted: Address) -> bool:
    return same_address(address, wanted) or (address[0] in _ANY_HOST and address[1] == wanted[1])
