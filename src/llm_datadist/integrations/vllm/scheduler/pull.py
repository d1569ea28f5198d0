"""Scheduler side of pull mode: decides which requests are offered, loaded and given back.

It uses attributes of vLLM's requests only, and runs on the scheduler's thread.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llm_datadist.integrations.vllm.kv_layout import random_key
from llm_datadist.integrations.vllm.kv_transfer_params import (
    Offer,
    RankAddress,
    is_prefilled,
    offer_of,
    producer_problem,
    prompt_digest,
    wants_remote_decode,
)
from llm_datadist.integrations.vllm.request_traces import trace_headers_of
from llm_datadist.integrations.vllm.states import shorten
from llm_datadist.integrations.vllm.step_orders import Load, StepOrders
from llm_datadist.integrations.vllm.transfer_counts import TransferCounts

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

logger: logging.Logger = logging.getLogger("llm_datadist.vllm")

_NULL_BLOCK = 0
"""vLLM's placeholder for blocks that a sliding window has left behind, and for replaced states."""

_LEAST_PROMPT = 2
"""Tokens of a prompt of which nothing is offered with states: one would be left to load."""


@dataclass(frozen=True, slots=True)
class _Offered:
    """A request that carries a usable offer, until its blocks are allocated.

    Attributes:
        offer: The offer.
        num_local_tokens: How many tokens this engine had at the last `num_new_matched_tokens`.
    """

    offer: Offer
    num_local_tokens: int = 0


class PullScheduler:
    """State of pull mode in one scheduler.

    Args:
        orders: Takes the orders to the workers.
        engine_id: vLLM's name of this engine, for logs.
        block_sizes: Tokens of a block, by KV cache group.
        tp_size: Tensor-parallel ranks of this engine.
        is_producer: Whether this engine prefills for others.
        is_consumer: Whether other engines prefill for this one.
        state_groups: KV cache groups whose blocks hold running states.
    """

    def __init__(
        self,
        orders: StepOrders,
        engine_id: str,
        block_sizes: Sequence[int],
        tp_size: int,
        *,
        is_producer: bool,
        is_consumer: bool,
        state_groups: Collection[int] = (),
    ) -> None:
        self._orders = orders
        self._state_groups = state_groups
        self._prompts: dict[str, str] = {}
        self._engine_id = engine_id
        self._tp_size = tp_size
        self._block_sizes = tuple(block_sizes)
        self._is_producer = is_producer
        self._is_consumer = is_consumer
        self.ranks: list[RankAddress] = []
        self.counts: TransferCounts = TransferCounts()
        self._keys: dict[str, int] = {}
        self._offered: dict[str, _Offered] = {}
        self._decided: set[str] = set()
        self._loading: set[str] = set()

    def arrived(self, request: Any) -> None:
        """Accept a new request; a prompt that will be offered with its state is shortened."""
        is_sent = self._is_producer and wants_remote_decode(request.kv_transfer_params)
        if not self._state_groups or not is_sent or request.num_prompt_tokens <= _LEAST_PROMPT:
            return
        prompt = prompt_digest(request)  # of the whole prompt, as the consumer has it
        problem = "its prompt does not consist of token ids alone" if prompt is None else ""
        problem = problem or shorten(request)
        if problem or prompt is None:
            logger.warning(
                "request %s: it will not be offered, because this model has states: %s",
                request.request_id,
                problem,
            )
            return
        self._prompts[request.request_id] = prompt

    def num_new_matched_tokens(self, request: Any, num_local_tokens: int) -> int:
        """Return how many tokens after the first `num_local_tokens` to load; starts nothing.

        This engine computes the prompt's last token itself, so a block of it alone is not loaded.
        """
        offered = self._offer_for(request)
        if offered is None:
            return 0
        num_tokens: int = min(offered.offer.num_tokens, request.num_prompt_tokens - 1)
        self._offered[request.request_id] = replace(offered, num_local_tokens=num_local_tokens)
        return max(0, num_tokens - num_local_tokens)

    def allocated(
        self, request: Any, block_ids: tuple[list[int], ...], num_external_tokens: int
    ) -> None:
        """Load `num_external_tokens` into the blocks that a request has been given."""
        request_id = request.request_id
        is_published = self._is_producer and wants_remote_decode(request.kv_transfer_params)
        if is_published and request_id not in self._keys:
            key = self._keys[request_id] = random_key()
            self._orders.publish[request_id] = key
        offered = self._offered.pop(request_id, None)
        if offered is None:
            return
        if num_external_tokens == 0:
            self._orders.dismiss.append(offered.offer)
            return
        self._loading.add(request_id)
        end = offered.num_local_tokens + num_external_tokens
        load = self._load(request_id, offered, block_ids, end)
        self._orders.loads.append(replace(load, trace_headers=trace_headers_of(request)))

    def loaded(self, request_ids: set[str]) -> None:
        """Note that these loads have ended on all workers."""
        self._loading -= request_ids

    def finished(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Offer the blocks of a request that has ended, if they are usable.

        Returns:
            Whether its blocks must be kept until the workers report it as sent, and its offer.
        """
        request_id = request.request_id
        unused = self._offer_for(request)
        if unused is not None:
            del self._offered[request_id]
            self._orders.dismiss.append(unused.offer)
        self._decided.discard(request_id)
        prompt = self._prompts.pop(request_id, None)
        if request_id in self._loading:
            self._loading.discard(request_id)
            self._orders.abandon.append(request_id)
        key = self._keys.pop(request_id, None)
        if key is None:
            return False, None
        offer = self._offer(request, key, block_ids, prompt)
        if offer is None:
            self._orders.withdraw.append(request_id)
            return False, None
        self._orders.hold.append(request_id)
        return True, offer.to_params()

    def _load(
        self, request_id: str, offered: _Offered, block_ids: tuple[list[int], ...], end: int
    ) -> Load:
        """Return the order to load the tokens from `num_local_tokens` to `end`."""
        if not self._has_block_sizes_of(offered.offer):
            return self._load_unequal(request_id, offered, block_ids[0], end)
        src_blocks: list[list[int]] = []
        dst_blocks: list[list[int]] = []
        unavailable: list[int] = []
        for group, block_size in enumerate(self._block_sizes):
            indices = range(offered.num_local_tokens // block_size, -(-end // block_size))
            pairs = [(offered.offer.blocks[group][i], block_ids[group][i]) for i in indices]
            needed = [(src, dst) for src, dst in pairs if dst != _NULL_BLOCK]
            unavailable += [dst for src, dst in needed if src == _NULL_BLOCK]
            src_blocks.append([src for src, _ in needed if src != _NULL_BLOCK])
            dst_blocks.append([dst for src, dst in needed if src != _NULL_BLOCK])
            if group in self._state_groups and _NULL_BLOCK in pairs[-1]:
                unavailable += [_NULL_BLOCK]  # the last state: without it nothing is of use
        return Load(request_id, offered.offer, src_blocks, dst_blocks, unavailable)

    def _load_unequal(
        self, request_id: str, offered: _Offered, block_ids: list[int], end: int
    ) -> Load:
        """Return the order to load tokens from blocks of another size, of one KV cache group."""
        offer, dst_size, src_size = (
            offered.offer,
            self._block_sizes[0],
            offered.offer.block_sizes[0],
        )
        first = offered.num_local_tokens // dst_size
        dst_blocks = block_ids[first : -(-end // dst_size)]
        if _NULL_BLOCK in dst_blocks:  # of a sliding window: not in the order of the tokens
            unavailable = [block for block in dst_blocks if block != _NULL_BLOCK]
            return Load(request_id, offer, [[]], [[]], unavailable)
        begin = first * dst_size
        src_blocks = offer.blocks[0][begin // src_size : -(-end // src_size)]
        return Load(
            request_id,
            offer,
            [src_blocks],
            [dst_blocks],
            [],
            src_offset=begin % src_size,
            num_tokens=end - begin,
        )

    def _offer_for(self, request: Any) -> _Offered | None:
        """Return the usable offer of a request; each request's is checked once."""
        request_id = request.request_id
        if request_id in self._decided:
            return self._offered.get(request_id)
        self._decided.add(request_id)
        try:
            offer = offer_of(request.kv_transfer_params)
            problem = "" if offer is None else self._problem(request, offer)
        except ValueError as error:
            offer, problem = None, str(error)
        if problem:
            self.counts.add("requests_recomputed", "offer")
            logger.warning(
                "request %s: its prompt will be recomputed, because the offer that came with it "
                "cannot be used: %s",
                request_id,
                problem,
            )
        elif offer is not None:
            self._offered[request_id] = _Offered(offer)
        return self._offered.get(request_id)

    def _problem(self, request: Any, offer: Offer) -> str:
        """Return why an offer cannot be used, or ""."""
        if problem := producer_problem(offer.ranks, self._tp_size, is_consumer=self._is_consumer):
            return problem
        digest = prompt_digest(request)
        if digest is None or digest != offer.prompt:
            return (
                f"it is of another prompt (request {offer.remote_request_id} of engine "
                f"{offer.remote_engine_id}); send each request with its own kv_transfer_params"
            )
        if len(offer.blocks) != len(self._block_sizes):
            return (
                f"it has {len(offer.blocks)} KV cache groups, this engine {len(self._block_sizes)}"
            )
        for blocks, block_size in zip(offer.blocks, offer.block_sizes, strict=True):
            if len(blocks) * block_size < offer.num_tokens:
                return (
                    f"its {len(blocks)} blocks of {block_size} tokens do not hold "
                    f"{offer.num_tokens} tokens"
                )
        if self._state_groups and offer.num_tokens != request.num_prompt_tokens - 1:
            return (
                f"it has the state after {offer.num_tokens} tokens, of a prompt of "
                f"{request.num_prompt_tokens}; needed is that before the last token"
            )
        return "" if self._has_block_sizes_of(offer) else self._block_size_problem(offer)

    def _has_block_sizes_of(self, offer: Offer) -> bool:
        return tuple(offer.block_sizes) == self._block_sizes

    def _block_size_problem(self, offer: Offer) -> str:
        """Return why blocks of another size cannot be used, or ""."""
        why = ""
        if self._state_groups:
            why = "which must be equal for models with states"
        elif len(self._block_sizes) > 1:
            why = "which must be equal with several KV cache groups"
        elif _NULL_BLOCK in offer.blocks[0]:
            why = "which must be equal when a sliding window has left blocks behind"
        if not why:
            return ""
        return (
            f"the producer has block size {_listed(offer.block_sizes)}, this engine "
            f"{_listed(self._block_sizes)}, {why}; run both with the same --block-size"
        )

    def _offer(
        self, request: Any, key: int, block_ids: tuple[list[int], ...], prompt: str | None
    ) -> Offer | None:
        """Return the offer of a request, or None; `prompt` is the digest of a shortened one."""
        num_tokens = min(request.num_prompt_tokens, request.num_computed_tokens)
        digest = prompt if self._state_groups else prompt_digest(request)
        is_usable = is_prefilled(request) and num_tokens > 1
        if self._state_groups:  # no token may have been computed after those of the prompt
            is_usable &= request.num_computed_tokens == request.num_prompt_tokens
        if not is_usable or digest is None or not self.ranks:
            return None
        blocks = [
            list(ids[: -(-num_tokens // block_size)])
            for ids, block_size in zip(block_ids, self._block_sizes, strict=True)
        ]
        return Offer(
            key=key,
            ranks=self.ranks,
            blocks=blocks,
            block_sizes=list(self._block_sizes),
            num_tokens=num_tokens,
            prompt=digest,
            remote_request_id=request.request_id,
            remote_engine_id=self._engine_id,
        )


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
