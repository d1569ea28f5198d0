"""Signs of life on the lanes of many links, in one native call."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import numpy as np

from llm_datadist import _native

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_datadist._backends.lanes import LinkLanes
    from llm_datadist._backends.transfer import U64Array

__all__ = ["LaneWatch"]


@final
class LaneWatch:
    """Looks at the lanes of many links; see `LinkWatch` of the links.

    Args:
        links: The links.
        ping: Pings the links at some places of `links`, given with a deadline.
    """

    def __init__(
        self, links: Sequence[LinkLanes], ping: Callable[[Sequence[int], int], list[bool]]
    ) -> None:
        self.ping = ping
        found = [(place, link.native) for place, link in enumerate(links)]
        self._places = [place for place, native in found if native is not None]
        self._natives = [native for _, native in found if native is not None]
        self._num_links = len(found)

    def look(self, *, prune: bool) -> tuple[U64Array, list[int]]:
        """Return a number for each link that changes with its traffic, and places of lost lanes."""
        data, incomplete = _native.look_all(self._natives, prune)
        traffic = np.frombuffer(data, np.uint64)
        if len(self._places) == self._num_links:
            return traffic, incomplete
        scattered = np.zeros(self._num_links, np.uint64)
        scattered[self._places] = traffic
        return scattered, [self._places[place] for place in incomplete]
