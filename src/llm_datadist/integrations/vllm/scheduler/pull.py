"""The scheduler's side of the connector: which requests are offered, fetched and given back.

It knows vLLM's requests by their attributes only, and runs on the scheduler's thread.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llm_datadist.integrations.vllm.kv_layout import MAX_PARTS
from llm_datadist.integrations.vllm.kv_transfer_params import (
    MAX_KEY,
    Offer,
    RankAddress,
    offer_of,
    prompt_digest,
    wants_remote_decode,
)
from llm_datadist.integrations.vllm.step_orders import Load, StepOrders

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PullScheduler"]

logger = logging.getLogger("llm_datadist.vllm")

_COMPLETE = {"FINISHED_LENGTH_CAPPED", "FINISHED_STOPPED", "FINISHED_REPETITION"}
"""Ends of a request after which its prompt's blocks are worth something."""

_NULL_BLOCK = 0
"""vLLM's placeholder for blocks that a sliding window has left behind."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A request that carries a usable offer, until its blocks are allocated.

    Attributes:
        offer: The offer.
        num_local_tokens: How many tokens this engine has itself, as last asked.
    """

    offer: Offer
    num_local_tokens: int = 0


class PullScheduler:
    """Bookkeeping of one scheduler.

    Args:
        engine_id: vLLM's name of this engine, for logs.
        block_sizes: Tokens of a block, by KV cache group.
        num_ranks: Workers of this engine.
        is_producer: Whether requests may be prefilled here for others.
        is_consumer: Whether requests may be fetched from others.
    """

    def __init__(
        self,
        engine_id: str,
        block_sizes: Sequence[int],
        num_ranks: int,
        *,
        is_producer: bool,
        is_consumer: bool,
    ) -> None:
        self._engine_id = engine_id
        self._num_ranks = num_ranks
        self._block_sizes = tuple(block_sizes)
        self._is_producer = is_producer
        self._is_consumer = is_consumer
        self._ranks: list[RankAddress] = []
        self._orders = StepOrders()
        self._keys: dict[str, int] = {}
        self._wanted: dict[str, _Wanted] = {}
        self._decided: set[str] = set()
        self._loading: set[str] = set()

    def set_ranks(self, ranks: list[RankAddress]) -> None:
        """Where the workers of this engine listen, by rank."""
        self._ranks = ranks

    def num_new_matched_tokens(self, request: Any, num_local_tokens: int) -> int:
        """How many tokens after the first `num_local_tokens` to fetch; changes nothing visible.

        The prompt's last token is computed here in any case, so blocks of it alone are not fetched.
        """
        wanted = self._wanted_by(request)
        if wanted is None:
            return 0
        num_tokens: int = min(wanted.offer.num_tokens, request.num_prompt_tokens - 1)
        self._wanted[request.request_id] = replace(wanted, num_local_tokens=num_local_tokens)
        return max(0, num_tokens - num_local_tokens)

    def allocated(
        self, request: Any, block_ids: tuple[list[int], ...], num_external_tokens: int
    ) -> None:
        """The request's blocks are there; `num_external_tokens` are to be fetched into them."""
        request_id = request.request_id
        is_ours = self._is_producer and wants_remote_decode(request.kv_transfer_params)
        if is_ours and request_id not in self._keys:
            key = self._keys[request_id] = _new_key()
            self._orders.publish[request_id] = key
        wanted = self._wanted.pop(request_id, None)
        if wanted is None:
            return
        if num_external_tokens == 0:
            self._orders.dismiss.append(wanted.offer)
            return
        self._loading.add(request_id)
        self._orders.loads.append(
            self._load(request_id, wanted, block_ids, wanted.num_local_tokens + num_external_tokens)
        )

    @property
    def orders(self) -> StepOrders:
        """Those of the next step, so far."""
        return self._orders

    def take_orders(self) -> StepOrders:
        """What the workers have to do in this step."""
        orders, self._orders = self._orders, StepOrders()
        return orders

    def loaded(self, request_ids: set[str]) -> None:
        """All workers have ended these loads."""
        self._loading -= request_ids

    def finished(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """A request has ended.

        Returns:
            Whether its blocks are kept until a worker reports it as sent, and its offer.
        """
        request_id = request.request_id
        unused = self._wanted_by(request)
        if unused is not None:
            del self._wanted[request_id]
            self._orders.dismiss.append(unused.offer)
        self._decided.discard(request_id)
        if request_id in self._loading:
            self._loading.discard(request_id)
            self._orders.abandon.append(request_id)
        key = self._keys.pop(request_id, None)
        if key is None:
            return False, None
        offer = self._offer(request, key, block_ids)
        if offer is None:
            self._orders.withdraw.append(request_id)
            return False, None
        self._orders.hold.append(request_id)
        return True, offer.to_params()

    def _load(
        self, request_id: str, wanted: _Wanted, block_ids: tuple[list[int], ...], end: int
    ) -> Load:
        """The order to fetch the tokens from `num_local_tokens` to `end`."""
        src: list[list[int]] = []
        dst: list[list[int]] = []
        unavailable: list[int] = []
        for group, block_size in enumerate(self._block_sizes):
            blocks = range(wanted.num_local_tokens // block_size, -(-end // block_size))
            pairs = [(wanted.offer.blocks[group][i], block_ids[group][i]) for i in blocks]
            needed = [pair for pair in pairs if pair[1] != _NULL_BLOCK]
            unavailable += [own for theirs, own in needed if theirs == _NULL_BLOCK]
            src.append([theirs for theirs, _ in needed if theirs != _NULL_BLOCK])
            dst.append([own for theirs, own in needed if theirs != _NULL_BLOCK])
        return Load(request_id, wanted.offer, src, dst, unavailable)

    def _wanted_by(self, request: Any) -> _Wanted | None:
        """The offer to use for a request; each request's is judged once."""
        request_id = request.request_id
        if request_id in self._decided:
            return self._wanted.get(request_id)
        self._decided.add(request_id)
        try:
            offer = offer_of(request.kv_transfer_params)
            problem = "" if offer is None else self._problem(request, offer)
        except ValueError as error:
            offer, problem = None, str(error)
        if problem:
            logger.warning(
                "request %s: its prompt is computed here, because the offer that came with it is "
                "not usable: %s",
                request_id,
                problem,
            )
        elif offer is not None:
            self._wanted[request_id] = _Wanted(offer)
        return self._wanted.get(request_id)

    def _problem(self, request: Any, offer: Offer) -> str:
        """Why an offer cannot be used, or ""."""
        if not self._is_consumer:
            return "this engine is a producer only; give it kv_role kv_consumer or kv_both"
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
        for blocks, block_size in zip(offer.blocks, self._block_sizes, strict=True):
            if len(blocks) * block_size < offer.num_tokens:
                return (
                    f"its {len(blocks)} blocks do not hold {offer.num_tokens} tokens with this "
                    f"engine's block size {block_size}; run both with the same --block-size"
                )
        if len(offer.ranks) != self._num_ranks:
            return (
                f"the producer has tensor parallel size {len(offer.ranks)}, this engine "
                f"{self._num_ranks}; run both with the same"
            )
        return ""

    def _offer(self, request: Any, key: int, block_ids: tuple[list[int], ...]) -> Offer | None:
        num_tokens = min(request.num_prompt_tokens, request.num_computed_tokens)
        digest = prompt_digest(request)
        is_complete = request.status.name in _COMPLETE and num_tokens > 1
        if not is_complete or digest is None or not self._ranks:
            return None
        blocks = [
            list(ids[: -(-num_tokens // block_size)])
            for ids, block_size in zip(block_ids, self._block_sizes, strict=True)
        ]
        return Offer(
            key=key,
            ranks=self._ranks,
            blocks=blocks,
            num_tokens=num_tokens,
            prompt=digest,
            remote_request_id=request.request_id,
            remote_engine_id=self._engine_id,
        )


def _new_key() -> int:
    """A key that nobody can guess, with room for one number for each part of the layout."""
    return (secrets.randbelow(MAX_KEY // MAX_PARTS - 1) + 1) * MAX_PARTS
