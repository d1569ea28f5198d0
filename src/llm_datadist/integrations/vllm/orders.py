"""What the scheduler's side of the connector tells the workers' side, once per step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_datadist.integrations.vllm.params import Offer

__all__ = ["Load", "Orders"]


@dataclass(frozen=True, slots=True)
class Load:
    """Fetch a request's blocks from its producer.

    Attributes:
        request_id: Of this engine.
        offer: Where they are.
        src_blocks: The producer's blocks, by KV cache group; in the order of the tokens.
        dst_blocks: Own blocks, as many.
        unavailable: Own blocks that the offer has nothing for; they count as failed.
    """

    request_id: str
    offer: Offer
    src_blocks: list[list[int]]
    dst_blocks: list[list[int]]
    unavailable: list[int]


@dataclass(slots=True)
class Orders:
    """Of one step.

    Attributes:
        publish: Request -> key: register the memory under this key; nobody knows it yet.
        hold: Requests whose key is now being given away: keep them for the hold time.
        withdraw: Requests that nobody will fetch.
        loads: Requests to fetch.
        dismiss: Offers that are not needed; the producer can have its blocks back.
        abandon: Requests whose load has no reader any more.
    """

    publish: dict[str, int] = field(default_factory=dict)
    hold: list[str] = field(default_factory=list)
    withdraw: list[str] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    dismiss: list[Offer] = field(default_factory=list)
    abandon: list[str] = field(default_factory=list)
