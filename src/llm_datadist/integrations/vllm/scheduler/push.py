"""Scheduler side of push mode: decides which requests are pushed and received, and their progress.

It uses attributes of vLLM's objects only, and runs on the scheduler's thread. Requests without a
`transfer` in their kv_transfer_params are left to pull mode.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llm_datadist.integrations.vllm.kv_transfer_params import (
    RankAddress,
    RemotePrefill,
    is_prefilled,
    mailbox_key_of,
    producer_problem,
    prompt_digest,
    remote_prefill_of,
)
from llm_datadist.integrations.vllm.request_traces import trace_headers_of
from llm_datadist.integrations.vllm.step_orders import Receive, Send, StepProgress
from llm_datadist.integrations.vllm.transfer_counts import TransferCounts

if TYPE_CHECKING:
    from llm_datadist.integrations.vllm.step_orders import StepOrders

logger: logging.Logger = logging.getLogger("llm_datadist.vllm")

_PREEMPTED = "its blocks were taken away during the prefill"


@dataclass(frozen=True, slots=True)
class _Expected:
    """A request that another engine prefills, until its blocks are allocated."""

    prefill: RemotePrefill
    prompt: str
    num_local_tokens: int = 0


class PushScheduler:
    """State of push mode in one scheduler.

    Args:
        orders: Takes the orders to the workers.
        block_size: Tokens of a block; there is one KV cache group.
        tp_size: Tensor-parallel ranks of this engine.
        is_producer: Whether this engine prefills for others.
        is_consumer: Whether other engines prefill for this one.

    Attributes:
        ranks: The workers of this engine, if they listen.
        stages: Layers of each pipeline stage of this engine, as in `Receive`.
    """

    def __init__(
        self,
        orders: StepOrders,
        block_size: int,
        tp_size: int,
        *,
        is_producer: bool,
        is_consumer: bool,
    ) -> None:
        self._orders = orders
        self._block_size = block_size
        self._tp_size = tp_size
        self._is_producer = is_producer
        self._is_consumer = is_consumer
        self.ranks: list[RankAddress] = []
        self.stages: tuple[tuple[int, int] | None, ...] = (None,)
        self.counts: TransferCounts = TransferCounts()
        self._sending: dict[str, Send] = {}
        self._expected: dict[str, _Expected] = {}
        self._loading: set[str] = set()

    def arrived(self, request: Any) -> None:
        """Accept a new request; vLLM calls nothing else for it before."""
        request_id = request.request_id
        try:
            key = mailbox_key_of(request.kv_transfer_params) if self._is_producer else None
            prefill = remote_prefill_of(request.kv_transfer_params)
            prompt = prompt_digest(request)
            if prefill is not None and (problem := self._problem(prefill, prompt)):
                raise ValueError(problem)
        except ValueError as error:
            if (request.kv_transfer_params or {}).get("do_remote_prefill"):
                self.counts.add("requests_recomputed", "offer")
            logger.warning("request %s: it is not transferred: %s", request_id, str(error))
            return
        if prompt is None or request.num_prompt_tokens <= 1:
            return
        if key is not None:
            headers = trace_headers_of(request)
            send = Send(request_id, key, prompt, request.num_prompt_tokens, headers)
            self._sending[request_id] = send
            self._orders.send.append(send)
        if prefill is not None:
            self._expected[request_id] = _Expected(prefill, prompt)

    def num_new_matched_tokens(self, request: Any, num_local_tokens: int) -> int:
        """Return how many tokens to receive: those after `num_local_tokens`, except the last."""
        expected = self._expected.get(request.request_id)
        if expected is None:
            return 0
        self._expected[request.request_id] = replace(expected, num_local_tokens=num_local_tokens)
        return max(0, int(request.num_prompt_tokens) - 1 - num_local_tokens)

    def allocated(
        self, request: Any, block_ids: tuple[list[int], ...], num_external_tokens: int
    ) -> None:
        """Receive `num_external_tokens` into the blocks that a request has been given."""
        expected = self._expected.pop(request.request_id, None)
        if expected is None:
            return
        if num_external_tokens:
            self._loading.add(request.request_id)
        self._receive(request.request_id, expected, block_ids[0], num_external_tokens)

    def scheduled(self, output: Any) -> None:
        """Order the pushes of a step that is about to run.

        Args:
            output: vLLM's SchedulerOutput.
        """
        for request_id in output.preempted_req_ids or ():
            self._give_up(request_id, _PREEMPTED)
        for new in output.scheduled_new_reqs:
            if new.req_id in self._sending:
                self._progress(output, new.req_id, new.block_ids, new.num_computed_tokens)
        cached = output.scheduled_cached_reqs
        for request_id, block_ids, num_computed_tokens in zip(
            cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True
        ):
            if request_id not in self._sending:
                continue
            if request_id in cached.resumed_req_ids:
                self._give_up(request_id, _PREEMPTED)
            else:
                self._progress(output, request_id, block_ids, num_computed_tokens)

    def loaded(self, request_ids: set[str]) -> None:
        """Note that these requests are received on all workers, or given up."""
        self._loading -= request_ids

    def finished(
        self, request: Any, _block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Finish or give up the push of a request that has ended.

        Returns:
            Whether its blocks must be kept until the workers report it as sent, and its answer.
        """
        request_id = request.request_id
        expected = self._expected.pop(request_id, None)
        if expected is not None:
            self._receive(request_id, expected, [], 0)
        if request_id in self._loading:
            self._loading.discard(request_id)
            self._orders.abandon.append(request_id)
        send = self._sending.get(request_id)
        if send is None:
            return False, None
        if not is_prefilled(request) or request.num_computed_tokens < send.num_tokens:
            self._give_up(request_id, "the producer's request was aborted")
            return False, None
        del self._sending[request_id]
        self._orders.finish.append(request_id)
        transfer = request.kv_transfer_params["transfer"]
        answer = RemotePrefill(transfer=transfer, ranks=self.ranks, block_sizes=[self._block_size])
        return True, answer.to_params()

    def _problem(self, prefill: RemotePrefill, prompt: str | None) -> str:
        """Return why a request cannot be received, or ""."""
        if prompt is None:
            return "its prompt does not consist of token ids alone"
        groups = 1 if prefill.block_sizes is None else len(prefill.block_sizes)
        if groups != 1:
            return f"the producer has {groups} KV cache groups, this engine 1"
        return producer_problem(prefill.ranks, self._tp_size, is_consumer=self._is_consumer)

    def _receive(
        self, request_id: str, expected: _Expected, block_ids: list[int], num_external_tokens: int
    ) -> None:
        first = expected.num_local_tokens // self._block_size
        num_tokens = expected.num_local_tokens + num_external_tokens
        end = -(-num_tokens // self._block_size)
        blocks = list(block_ids[first:end]) if num_external_tokens else []
        self._orders.receive.append(
            Receive(
                request_id,
                expected.prefill,
                expected.prompt,
                first,
                blocks,
                num_tokens,
                self.stages,
            )
        )

    def _progress(
        self, output: Any, request_id: str, block_ids: Any, num_computed_tokens: int
    ) -> None:
        end = num_computed_tokens + output.num_scheduled_tokens[request_id]
        num_tokens = min(end, self._sending[request_id].num_tokens)
        blocks = list(block_ids[0]) if block_ids else []
        self._orders.progress.append(StepProgress(request_id, blocks, num_tokens))

    def _give_up(self, request_id: str, reason: str) -> None:
        if self._sending.pop(request_id, None) is not None:
            self._orders.give_up[request_id] = reason
