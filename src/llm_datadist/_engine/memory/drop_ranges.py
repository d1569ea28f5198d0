"""Request to peers to drop what they hold of memory of this instance: mappings and fault marks."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from llm_datadist._engine.link.messages import MAX_RANGES, Remapped, encode
from llm_datadist._errors import finalized

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_datadist._engine.instance import Lifetime
    from llm_datadist._errors import LLMException
    from llm_datadist._links import Link, LinkTable

__all__ = ["drop_ranges"]

logger = logging.getLogger("llm_datadist")


def drop_ranges(
    links: LinkTable,
    life: Lifetime,
    operation: str,
    ranges: Sequence[tuple[int, int]],
    deadline_ns: int,
    concerns: Callable[[Link], bool] = lambda _: True,
) -> list[Link]:
    """Have peers drop ranges, and end the links of those that do not answer.

    Args:
        links: The link table.
        life: Of this instance.
        operation: For texts: the call, or what else makes this necessary.
        ranges: (address, size).
        deadline_ns: By when all peers must have answered.
        concerns: Whether a link is concerned.

    Returns:
        The links that were ended.

    Raises:
        LLMException: LLM_ENGINE_FINALIZED; others as `LinkTable.request_all`.
    """
    silent: list[Link] = []

    def end(link: Link, error: LLMException) -> None:
        if life.closing:
            raise finalized(operation)
        logger.warning("%s: cluster %d loses its link: %s", operation, link.cluster_id, str(error))
        links.drop(link, f"no answer to {operation}: {error}")
        silent.append(link)

    for first in range(0, len(ranges), MAX_RANGES):
        concerned = [link for link in links.links() if concerns(link)]
        if concerned:
            body = encode(Remapped(tuple(ranges[first : first + MAX_RANGES])))
            links.request_all(concerned, body, deadline_ns, end)
    return silent
