"""Exceptions that calls on the link table raise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_datadist._control.sockets import printed
from llm_datadist._errors import LLMStatusCode, fail

if TYPE_CHECKING:
    from llm_datadist._errors import LLMException
    from llm_datadist._links.link import Link
    from llm_datadist._links.state import LinkIndex

__all__ = ["link_ended", "not_linked", "timed_out"]

_MAX_NAMED: Final = 8


def timed_out(operation: str, link: Link, timeout_ms: float) -> LLMException:
    """Return the exception of a call that the peer has not answered in time."""
    return fail(
        LLMStatusCode.LLM_TIMEOUT,
        operation,
        f"{printed(link.address)} did not answer within {timeout_ms:.0f} ms",
        "retry, or unlink_clusters with force when the peer is not coming back",
        cluster_id=link.cluster_id,
    )


def link_ended(operation: str, link: Link, reason: str) -> LLMException:
    """Return the exception of a call whose link ended before or during it."""
    return fail(
        LLMStatusCode.LLM_LINK_FAILED,
        operation,
        f"the link to {printed(link.address)} ended ({link.reason or reason})",
        "link_clusters again",
        cluster_id=link.cluster_id,
    )


def not_linked(
    operation: str, index: LinkIndex, cluster_id: int, own_cluster_id: int
) -> LLMException:
    """Return the exception of a call that needs a link to a cluster that has none."""
    remedy = "link_clusters again"
    if (relink := index.relinks.get(cluster_id)) is not None:
        problem = (
            f"its link was lost ({relink.lost.reason}) and is being re-established: "
            f"{relink.attempts} dials so far, the last: {relink.failure}"
        )
        remedy = "retry soon; unlink_clusters gives it up"
    elif (dead := index.dead.get(cluster_id)) is not None:
        problem = f"its link was lost: {dead.reason}"
    elif (end := index.ends_of.get(cluster_id)) is not None:
        problem = f"its link ended: {end}"
    elif cluster_id == own_cluster_id:
        problem = f"that is this instance itself; {linked_clusters(index)}"
        remedy = (
            "give the cluster id of the peer; copy_blocks and copy_cache copy within an instance"
        )
    else:
        problem = f"there is no link to it; {linked_clusters(index)}"
        remedy = "link_clusters first, or correct the cluster id"
    status = LLMStatusCode.LLM_NOT_YET_LINK
    return fail(status, operation, problem, remedy, cluster_id=cluster_id)


def linked_clusters(index: LinkIndex) -> str:
    """Name the linked clusters, for a text: `linked: cluster 1 at 10.0.0.1:26000`."""
    links = sorted(index.links.values(), key=lambda link: link.cluster_id)
    if not links:
        return "no cluster is linked"
    names = [f"cluster {link.cluster_id} at {printed(link.address)}" for link in links[:_MAX_NAMED]]
    more = f" and {len(links) - _MAX_NAMED} more" if len(links) > _MAX_NAMED else ""
    return f"linked: {', '.join(names)}{more}"
