"""Orders of the scheduler side to the workers, given once per step."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_datadist.integrations.vllm.kv_transfer_params import Offer, RemotePrefill


@dataclass(frozen=True, slots=True)
class Load:
    """Fetch a request's blocks from its producer.

    Attributes:
        request_id: Of this engine.
        offer: The producer's offer.
        src_blocks: The producer's blocks, by KV cache group, in the order of the tokens.
        dst_blocks: Local blocks in the order of the tokens: if block sizes are equal, one for each.
        unavailable: Local blocks that the offer has nothing for; they count as failed.
        src_offset: Unequal block sizes: tokens of `src_blocks` before the first one of
            `dst_blocks`.
        num_tokens: Unequal block sizes: tokens to fetch.
        trace_headers: Of the request, for its trace.
    """

    request_id: str
    offer: Offer
    src_blocks: list[list[int]]
    dst_blocks: list[list[int]]
    unavailable: list[int]
    src_offset: int = 0
    num_tokens: int = 0
    trace_headers: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Send:
    """Push mode: push a request, which this engine will prefill, layer by layer to a consumer.

    Attributes:
        request_id: Of this engine.
        key: BlocksCacheKey.model_id of the mailbox for the consumer's ticket.
        prompt: Digest of the prompt.
        num_tokens: Length of the prompt.
        trace_headers: Of the request, for its trace.
    """

    request_id: str
    key: int
    prompt: str
    num_tokens: int
    trace_headers: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class StepProgress:
    """Push mode: what a step adds to a request that is being prefilled.

    Attributes:
        request_id: Of this engine.
        blocks: Blocks that were allocated for this step, in the order of the tokens.
        num_tokens: How many of the prompt's tokens are computed after the step.
    """

    request_id: str
    blocks: list[int]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Receive:
    """Push mode: publish a request's blocks, and wait until its producer has filled them.

    Attributes:
        request_id: Of this engine.
        prefill: The producer's side.
        prompt: Digest of the prompt.
        first: Index of the first block of the prompt that is needed.
        blocks: Local blocks from that one on; empty if none is needed.
        num_tokens: How many tokens are needed, including those before `first`.
        stages: Layers of each pipeline stage of this engine, as first and end; None where they are
            not known.
    """

    request_id: str
    prefill: RemotePrefill
    prompt: str
    first: int
    blocks: list[int]
    num_tokens: int
    stages: tuple[tuple[int, int] | None, ...] = (None,)


@dataclass(slots=True)
class StepOrders:
    """Orders of one step.

    Attributes:
        publish: Request id -> key: publish the KV memory under this key, which no peer knows yet.
        hold: Requests that are now offered: keep their blocks for the hold time.
        withdraw: Published requests that are not offered.
        loads: Requests to fetch.
        dismiss: Offers that are not needed; their producers get the blocks back.
        abandon: Aborted requests whose loads are running.
        send: Push mode: new requests to push.
        progress: Push mode: those of them that this step computes.
        give_up: Push mode: those that will not be pushed, and why.
        finish: Push mode: those that are computed; keep their blocks until they are pushed.
        receive: Push mode: requests that other engines prefill.
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

    def take(self) -> StepOrders:
        """Move all orders into a new object, so that this one is ready for the next step."""
        taken, empty = replace(self), StepOrders()
        for each in fields(self):
            setattr(self, each.name, getattr(empty, each.name))
        return taken
