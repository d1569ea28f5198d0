"""What the scheduler's side of the connector tells the workers' side, once per step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_datadist.integrations.vllm.kv_transfer_params import Offer, RemotePrefill

__all__ = ["Receive", "Load", "StepOrders", "StepProgress", "Send"]


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


@dataclass(frozen=True, slots=True)
class Send:
    """Push mode: a request that will be prefilled here, layer by layer into a consumer's blocks.

    Attributes:
        request_id: Of this engine.
        key: BlocksCacheKey.model_id of the page on which the consumer leaves its ticket.
        prompt: Digest of the prompt.
        num_tokens: Of the prompt.
    """

    request_id: str
    key: int
    prompt: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class StepProgress:
    """Push mode: what a step adds to a request that is being prefilled.

    Attributes:
        request_id: Of this engine.
        blocks: Blocks that it has got for this step, in the order of the tokens.
        num_tokens: How many of the prompt's tokens are computed when the step is over.
    """

    request_id: str
    blocks: list[int]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Receive:
    """Push mode: make room for a request, and wait until its producer has filled it.

    Attributes:
        request_id: Of this engine.
        meeting: Where its producer is.
        prompt: Digest of the prompt.
        first: Index of the first block of the prompt that is wanted.
        blocks: Own blocks from that one on; none when all is here already.
        num_tokens: How many tokens are wanted, those before `first` included.
    """

    request_id: str
    meeting: RemotePrefill
    prompt: str
    first: int
    blocks: list[int]
    num_tokens: int


@dataclass(slots=True)
class StepOrders:
    """Of one step.

    Attributes:
        publish: Request -> key: register the memory under this key; nobody knows it yet.
        hold: Requests whose key is now being given away: keep them for the hold time.
        withdraw: Requests that nobody will fetch.
        loads: Requests to fetch.
        dismiss: Offers that are not needed; the producer can have its blocks back.
        abandon: Requests whose load has no reader any more.
        send: Push mode: requests that have come to be prefilled here.
        progress: Push mode: those of them that the step computes.
        give_up: Push mode: those that will not be sent, and why.
        finish: Push mode: those of which all is computed; keep their blocks until they are sent.
        receive: Push mode: requests that are prefilled elsewhere.
    """

    publish: dict[str, int] = field(default_factory=dict)
    hold: list[str] = field(default_factory=list)
    withdraw: list[str] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    dismiss: list[Offer] = field(default_factory=list)
    abandon: list[str] = field(default_factory=list)
    send: list[Send] = field(default_factory=list)
    progress: list[StepProgress] = field(default_factory=list)
    give_up: dict[str, str] = field(default_factory=dict)
    finish: list[str] = field(default_factory=list)
    receive: list[Receive] = field(default_factory=list)
