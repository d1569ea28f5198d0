"""Consumer in push mode: publishes requests' blocks, and waits until producers have filled them.

Each request's blocks are published under a key of its own, which only its ticket names. When the
receipt has arrived, or the wait ends for another reason, the key is withdrawn, and only *then* the
request is reported. Withdrawing is final: nothing that the producer pushes later can land in blocks
that vLLM uses, for this request or for another one.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_datadist import BlocksCacheKey, LLMException, LLMStatusCode
from llm_datadist.integrations.vllm.kv_layout import MAX_PARTS, random_key
from llm_datadist.integrations.vllm.worker.dispatcher import Dispatcher
from llm_datadist.integrations.vllm.worker.mailbox import Mailbox, Receipt, Ticket, send_message
from llm_datadist.integrations.vllm.worker.producer_links import (
    LINK_GONE,
    Incompatible,
    ProducerLinks,
    Unreachable,
)

if TYPE_CHECKING:
    from llm_datadist import Cache
    from llm_datadist.integrations.vllm.kv_transfer_params import RankAddress
    from llm_datadist.integrations.vllm.step_orders import Receive
    from llm_datadist.integrations.vllm.worker.instance import WorkerInstance
    from llm_datadist.integrations.vllm.worker.reports import Reports

logger = logging.getLogger("llm_datadist.vllm")

_LINK_CHECK_S = 0.1
_RETRY_S = 1.0


@dataclass(slots=True)
class _Wait:
    """A request that waits for its producer.

    Attributes:
        order: The scheduler's order.
        key: Key of the first part of its blocks.
        receipt_key: Key of its mailbox.
        deadline: When the wait ends in any case.
        is_ticket_sent: Whether the producer has the ticket.
        caches: Published blocks, once they are.
        mailbox: For the receipt; made with `caches`.
        problem: Why the wait failed; "" while it has not.
        is_over: Whether it has ended, so that the key is to be withdrawn.
        is_busy: Whether a thread works on it.
        due_at: When to send the ticket again, or to check the link.
    """

    order: Receive
    key: int
    receipt_key: int
    deadline: float
    is_ticket_sent: bool = False
    caches: list[Cache] | None = None
    mailbox: Mailbox | None = None
    problem: str = ""
    is_over: bool = False
    is_busy: bool = False
    due_at: float = 0.0

    @property
    def awaits_message(self) -> bool:
        return True

    def end(self, problem: str) -> None:
        """End the wait; the first problem counts."""
        self.problem = self.problem or problem
        self.is_over = True


class PushConsumer:
    """Receives requests and reports them as loaded. Calls never wait for a transfer.

    Args:
        worker: The worker's instance.
        reports: For requests whose wait has ended.
    """

    def __init__(self, worker: WorkerInstance, reports: Reports) -> None:
        self._worker = worker
        self._reports = reports
        self._hold_s = worker.options.hold_ms / 1000
        self._links = ProducerLinks(worker)
        self._dispatcher: Dispatcher[_Wait] = Dispatcher(
            "receive", worker.options.concurrent_loads, self._poll, self._work
        )
        self._lock = self._dispatcher.lock

    def receive(self, order: Receive) -> None:
        """Start to wait for a request, or tell its producer that no blocks are needed."""
        key = random_key(MAX_PARTS + 1)
        wait = _Wait(order, key, key + MAX_PARTS, time.monotonic() + self._hold_s)
        with self._lock:
            self._dispatcher.jobs[order.request_id] = wait
            self._dispatcher.note_change()
        self._reports.note_change()

    def abandon(self, request_id: str) -> None:
        """End the wait for an aborted request soon; it is reported all the same."""
        with self._lock:
            wait = self._dispatcher.jobs.get(request_id)
            if wait is not None:
                wait.end("the request was aborted")
                self._dispatcher.note_change()

    @property
    def is_waiting(self) -> bool:
        """Whether vLLM waits for requests."""
        return any(wait.order.blocks for wait in list(self._dispatcher.jobs.values()))

    def close(self) -> None:
        """Stop; idempotent. Close the instance first, so that nothing lands afterwards."""
        self._dispatcher.close()

    def _poll(self, wait: _Wait) -> bool:
        """Check the deadline and the mailbox; return whether there is work; lock held."""
        now = time.monotonic()
        if not wait.is_over and now >= wait.deadline:
            wait.end(f"hold_ms {self._worker.options.hold_ms} is over")
        elif not wait.is_over and wait.is_ticket_sent and wait.mailbox is not None:
            receipt = wait.mailbox.read(Receipt)
            if receipt is not None:
                fits = receipt.prompt == wait.order.prompt
                wait.end(receipt.problem or ("" if fits else "the receipt is of another prompt"))
        return wait.is_over or now >= wait.due_at

    def _work(self, wait: _Wait) -> None:
        """Send the ticket or check the link, and withdraw and report a wait that is over."""
        request_id = wait.order.request_id
        problem = ""
        try:
            if not wait.is_over:
                self._check_link(wait) if wait.is_ticket_sent else self._send_ticket(wait)
        except (LLMException, Incompatible, Unreachable, ValueError) as error:
            problem = str(error)
        except Exception:
            logger.exception("request %s: waiting for it failed", request_id)
            problem = "an error of the consumer"
        if problem:
            with self._lock:
                wait.end(problem)
        try:
            if wait.is_over:
                self._end(wait)
        except Exception:
            # Blocks whose key may be alive must not be reported: that would risk wrong bytes.
            logger.exception("request %s: its key is not withdrawn yet", request_id)
            time.sleep(_RETRY_S)

    def _send_ticket(self, wait: _Wait) -> None:
        """Publish the blocks and send the ticket; the producer may not know the request yet."""
        order, worker, rank = wait.order, self._worker, self._producer_of(wait)
        self._links.link(rank)
        if order.blocks and wait.caches is None:
            wait.caches = worker.publish(wait.key)
            wait.mailbox = Mailbox(worker.cache_manager, worker.cluster_id, wait.receipt_key)
        ticket = Ticket(
            cluster_id=worker.cluster_id,
            key=wait.key,
            receipt_key=wait.receipt_key,
            prompt=order.prompt,
            first=order.first,
            blocks=order.blocks,
            num_tokens=order.num_tokens,
        )
        key = BlocksCacheKey(rank.cluster_id, order.prefill.mailbox_key)
        try:
            send_message(worker.cache_manager, key, ticket)
        except LLMException as error:
            if error.status_code in LINK_GONE:
                self._links.drop(rank)  # the next attempt links again
            elif error.status_code == LLMStatusCode.LLM_TIMEOUT:
                self._links.mark_silent(rank, str(error))
                raise
            elif error.status_code != LLMStatusCode.LLM_KV_CACHE_NOT_EXIST:
                raise
            now = time.monotonic()
            waited_s = now - (wait.deadline - self._hold_s)
            wait.due_at = now + max(0.002, min(0.05, waited_s / 16))
            return
        wait.is_ticket_sent = True
        if not order.blocks:
            wait.end("")

    def _check_link(self, wait: _Wait) -> None:
        wait.due_at = time.monotonic() + _LINK_CHECK_S
        rank = self._producer_of(wait)
        try:
            self._worker.instance.describe_link(rank.cluster_id)
        except LLMException:
            self._links.drop(rank)
            raise

    def _producer_of(self, wait: _Wait) -> RankAddress:
        return wait.order.prefill.ranks[self._worker.layout.rank]

    def _end(self, wait: _Wait) -> None:
        """Withdraw the blocks, then report the request."""
        order = wait.order
        if wait.mailbox is not None:
            wait.mailbox.close()
        if wait.caches is not None:
            self._worker.withdraw(wait.caches)
        with self._lock:
            self._dispatcher.jobs.pop(order.request_id, None)
        if order.blocks:
            self._reports.add_loaded(order.request_id, order.blocks if wait.problem else ())
        if wait.problem:
            logger.warning(
                "request %s: %d of its blocks were not received and will be recomputed: %s",
                order.request_id,
                len(order.blocks),
                wait.problem,
            )
