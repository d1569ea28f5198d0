"""The scheduler's side of push mode: which requests are sent and awaited, and how far they are.

It knows vLLM's objects by their attributes only, and runs on the scheduler's thread. Requests
without a `transfer` in their kv_transfer_params are no business of it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llm_datadist.integrations.vllm.kv_transfer_params import (
    RankAddress,
    RemotePrefill,
    mailbox_key_of,
    prompt_digest,
    remote_prefill_of,
)
from llm_datadist.integrations.vllm.step_orders import Receive, Send, StepProgress

if TYPE_CHECKING:
    from llm_datadist.integrations.vllm.scheduler.pull import PullScheduler
    from llm_datadist.integrations.vllm.step_orders import StepOrders

__all__ = ["PushScheduler"]

logger = logging.getLogger("llm_datadist.vllm")

_COMPLETE = {"FINISHED_LENGTH_CAPPED", "FINISHED_STOPPED", "FINISHED_REPETITION"}


@dataclass(frozen=True, slots=True)
class _Awaited:
    """A request that another engine prefills, until its blocks are allocated."""

    meeting: RemotePrefill
    prompt: str
    num_local_tokens: int = 0


class PushScheduler:
    """Bookkeeping of one scheduler.

    Args:
        block_size: Tokens of a block; there is one KV cache group.
        num_ranks: Workers of this engine.
        pulls: The bookkeeping of pull mode, whose orders are given together with these.
        is_producer: Whether requests may be prefilled here for others.
        is_consumer: Whether requests may be prefilled by others.
    """

    def __init__(
        self,
        block_size: int,
        num_ranks: int,
        pulls: PullScheduler,
        *,
        is_producer: bool,
        is_consumer: bool,
    ) -> None:
        self._block_size = block_size
        self._num_ranks = num_ranks
        self._pulls = pulls
        self._is_producer = is_producer
        self._is_consumer = is_consumer
        self.ranks: list[RankAddress] = []
        self._sending: dict[str, Send] = {}
        self._awaited: dict[str, _Awaited] = {}
        self._loading: set[str] = set()

    @property
    def _orders(self) -> StepOrders:
        return self._pulls.orders

    def arrived(self, request: Any) -> None:
        """A request has come; nothing else is called for it before."""
        request_id = request.request_id
        try:
            key = mailbox_key_of(request.kv_transfer_params) if self._is_producer else None
            meeting = remote_prefill_of(request.kv_transfer_params)
            prompt = prompt_digest(request)
            if meeting is not None and (problem := self._problem(meeting, prompt)):
                raise ValueError(problem)
        except ValueError as error:
            logger.warning("request %s: it is not transferred: %s", request_id, str(error))
            return
        if prompt is None:
            return
        if key is not None and request.num_prompt_tokens > 1:
            send = Send(request_id, key, prompt, request.num_prompt_tokens)
            self._sending[request_id] = send
            self._orders.send.append(send)
        if meeting is not None and request.num_prompt_tokens > 1:
            self._awaited[request_id] = _Awaited(meeting, prompt)

    def num_new_matched_tokens(self, request: Any, num_local_tokens: int) -> int:
        """How many tokens after the first `num_local_tokens` to await; all but the last one."""
        awaited = self._awaited.get(request.request_id)
        if awaited is None:
            return 0
        self._awaited[request.request_id] = replace(awaited, num_local_tokens=num_local_tokens)
        return max(0, int(request.num_prompt_tokens) - 1 - num_local_tokens)

    def allocated(self, request: Any, block_ids: list[int], num_external_tokens: int) -> None:
        """The request's blocks are there; `num_external_tokens` come from its producer."""
        awaited = self._awaited.pop(request.request_id, None)
        if awaited is None:
            return
        if num_external_tokens:
            self._loading.add(request.request_id)
        self._orders.receive.append(
            self._await(request.request_id, awaited, block_ids, num_external_tokens)
        )

    def scheduled(self, output: Any) -> None:
        """A step is about to run; `output` is the scheduler's."""
        for request_id in output.preempted_req_ids or ():
            self._give_up(request_id, "its blocks were taken away during the prefill")
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
                self._give_up(request_id, "its blocks were taken away during the prefill")
            else:
                self._progress(output, request_id, block_ids, num_computed_tokens)

    def loaded(self, request_ids: set[str]) -> None:
        """All workers have ended waiting for these."""
        self._loading -= request_ids

    def finished(self, request: Any) -> tuple[bool, dict[str, Any] | None]:
        """A request has ended; returns as `PullScheduler.finished`."""
        request_id = request.request_id
        awaited = self._awaited.pop(request_id, None)
        if awaited is not None:
            self._orders.receive.append(self._await(request_id, awaited, [], 0))
        if request_id in self._loading:
            self._loading.discard(request_id)
            self._orders.abandon.append(request_id)
        send = self._sending.pop(request_id, None)
        if send is None:
            return False, None
        is_complete = request.status.name in _COMPLETE
        if not is_complete or request.num_computed_tokens < send.num_tokens:
            self._orders.give_up[request_id] = "the producer's request was aborted"
            return False, None
        self._orders.finish.append(request_id)
        transfer = request.kv_transfer_params["transfer"]
        return True, RemotePrefill(transfer=transfer, ranks=self.ranks).to_params()

    def _problem(self, meeting: RemotePrefill, prompt: str | None) -> str:
        """Why a meeting cannot take place, or ""."""
        if not self._is_consumer:
            return "this engine is a producer only; give it kv_role kv_consumer or kv_both"
        if prompt is None:
            return "its prompt is not of token ids alone"
        if len(meeting.ranks) != self._num_ranks:
            return (
                f"the producer has tensor parallel size {len(meeting.ranks)}, this engine "
                f"{self._num_ranks}; run both with the same"
            )
        return ""

    def _await(
        self, request_id: str, awaited: _Awaited, block_ids: list[int], num_external_tokens: int
    ) -> Receive:
        first = awaited.num_local_tokens // self._block_size
        num_tokens = awaited.num_local_tokens + num_external_tokens
        end = -(-num_tokens // self._block_size)
        blocks = list(block_ids[first:end]) if num_external_tokens else []
        return Receive(request_id, awaited.meeting, awaited.prompt, first, blocks, num_tokens)

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
