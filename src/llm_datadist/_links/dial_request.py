"""Input and outcome of one dial."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from llm_datadist._links.context import CLUSTERS

if TYPE_CHECKING:
    from llm_datadist._control.deadline import Deadline
    from llm_datadist._control.sockets import Address
    from llm_datadist._links.link import LinkResult
    from llm_datadist._links.state import Relink
    from llm_datadist._protocol.messages import DomainHello

__all__ = ["DialOutcome", "DialRequest"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DialRequest:
    """The peer to dial, and the conditions.

    Attributes:
        address: Of the peer.
        deadline: For the whole dial.
        expected_cluster_id: Refuse any other peer; None accepts any.
        expected_incarnation: Refuse any other incarnation; None accepts any.
        source_ip: Local ip to connect from; ignored with a warning if this host does not have it.
        domain: Set when the link is for a domain.
        is_repeated: Whether the same call has dialed before; failures are for debugging only then.
        relink: Set when a lost link is re-established, which never delays a call.
        connect_seconds: Limit for connecting alone.
        answer_seconds: Limit for connecting and the peer's greeting, which shows that an instance
            answers; from then on only the deadline counts.
    """

    address: Address
    deadline: Deadline
    expected_cluster_id: int | None = None
    expected_incarnation: int | None = None
    source_ip: str | None = None
    domain: DomainHello | None = None
    is_repeated: bool = False
    relink: Relink | None = None
    connect_seconds: float = math.inf
    answer_seconds: float = math.inf

    @property
    def is_call(self) -> bool:
        """Whether a call of `link_clusters` waits for the outcome."""
        return self.domain is None and self.relink is None

    @property
    def holder(self) -> str:
        """Name of the holder of the link."""
        return CLUSTERS if self.domain is None else self.domain.holder


@final
@dataclass(slots=True)
class DialOutcome:
    """A `LinkResult`, whether the link is new, and whether the peer answered before a failure."""

    result: LinkResult
    is_new: bool = False
    answered: bool = True
