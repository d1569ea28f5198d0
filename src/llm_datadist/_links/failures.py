"""What calls on the link table raise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_datadist._control.sockets import printed
from llm_datadist._errors import LLMStatusCode, fail

if TYPE_CHECKING:
    from llm_datadist._errors import LLMException
    from llm_datadist._links.link import Link

__all__ = ["finalized", "timed_out"]


def timed_out(operation: str, link: Link, timeout_ms: float) -> LLMException:
    """Return the exception of a call that the peer has not answered in time."""
    return fail(
        LLMStatusCode.LLM_TIMEOUT,
        operation,
        f"{printed(link.address)} did not answer within {timeout_ms:.0f} ms",
        "retry, or unlink_clusters with force when the peer is not coming back",
        cluster_id=link.cluster_id,
    )


def finalized(operation: str, cluster_id: int) -> LLMException:
    """Return the exception of a call on a table that was closed."""
    return fail(
        LLMStatusCode.LLM_ENGINE_FINALIZED,
        operation,
        "the instance was finalized",
        "initialise it again",
        cluster_id=cluster_id,
    )
