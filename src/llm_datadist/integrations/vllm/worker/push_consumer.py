"""Consumer in push mode: publishes requests' blocks, and waits until producers have filled them.

Each request's blocks are published under a key of its own, which only its tickets name: one for
each of its sources, the producer's workers that hold its part. When all their receipts have
arrived, or the wait ends for another reason, the key is withdrawn, and only *then* the request is
reported. Withdrawing is final: nothing that a producer pushes later can land in blocks that vLLM
uses, for this request or for another one.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llm_datadist import BlocksCacheKey, LLMException, LLMStatusCode
from llm_datadist.integrations.vllm.kv_layout import MAX_PARTS, random_key
from llm_datadist.integrations.vllm.kv_transfer_params import mailbox_key_of_slot
from llm_datadist.integrations.vllm.stages import overlapping
from llm_datadist.integrations.vllm.worker.dispatcher import Dispatcher
from llm_datadist.integrations.vllm.worker.mailbox import Mailbox, Receipt, Ticket, send_message
from llm_datadist.integrations.vllm.worker.producer_links import (
    LINK_GONE,
    Incompatible,
    ProducerLinks,
    Unreachable,
    reason_of,
)
from llm_datadist.integrations.vllm.worker.sources import SourceFinder

if TYPE_CHECKING:
    from llm_datadist import Cache
    from llm_datadist.integrations.vllm.kv_transfer_params import RankAddress
    from llm_datadist.integrations.vllm.step_orders import Receive
    from llm_datadist.integrations.vllm.worker.instance import WorkerInstance
    from llm_datadist.integrations.vllm.worker.reports import Reports
    from llm_datadist.integrations.vllm.worker.sources import Source, Sources

logger: logging.Logger = logging.getLogger("llm_datadist.vllm")

_MOST_SOURCES = 256
_LINK_CHECK_S = 0.1
_RETRY_S = 1.0


@dataclass(slots=True)
class _Wait:
    """A request that waits for its producer.

    Attributes:
        order: The scheduler's order.
        key: Key of the first part of its blocks.
        receipt_key: Key of its first mailbox; the others follow.
        deadline: When the wait ends in any case.
        sources: The producer's workers, once they are known.
        num_tickets: How many of them have their tickets.
        caches: Published blocks, once they are.
        mailboxes: One for the receipt of each source; made with `caches`.
        receipts: Sources whose receipts have arrived.
        problem: Why the wait failed; "" while it has not.
        reason: The same for the label of a metric; "" if the request was aborted.
        is_over: Whether it has ended, so that the key is to be withdrawn.
        is_busy: Whether a thread works on it.
        due_at: When to send the ticket again, or to check the link.
    """

    order: Receive
    key: int
    receipt_key: int
    deadline: float
    sources: Sources = ()
    num_tickets: int = 0
    caches: list[Cache] | None = None
    mailboxes: list[Mailbox] = field(default_factory=list)
    receipts: set[int] = field(default_factory=set)
    problem: str = ""
    reason: str = ""
    is_over: bool = False
    is_busy: bool = False
    due_at: float = 0.0

    @property
    def awaits_message(self) -> bool:
        return True

    @property
    def has_sent_tickets(self) -> bool:
        """Whether all sources have their tickets."""
        return bool(self.sources) and self.num_tickets == len(self.sources)

    def end(self, problem: str, reason: str = "") -> None:
        """End the wait; the first problem counts."""
        if not self.problem:
            self.problem, self.reason = problem, reason if problem else ""
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
        self._sources = SourceFinder(worker)
        self._dispatcher: Dispatcher[_Wait] = Dispatcher(
            "receive", worker.options.concurrent_loads, self._poll, self._work
        )
        self._lock = self._dispatcher.lock

    def receive(self, order: Receive) -> None:
        """Start to wait for a request, or tell its producer that no blocks are needed."""
        key = random_key(MAX_PARTS + _MOST_SOURCES)
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
        """Stop, and report all requests as failed; idempotent.

        Close the instance first, so that nothing lands afterwards.
        """
        for wait in self._dispatcher.close():
            if wait.order.blocks:
                self._reports.counts.add("requests_recomputed", "closed")
                self._reports.add_loaded(wait.order.request_id, wait.order.blocks)

    def _poll(self, wait: _Wait) -> bool:
        """Check the deadline and the mailbox; return whether there is work; lock held."""
        now = time.monotonic()
        if not wait.is_over and now >= wait.deadline:
            wait.end(f"hold_ms {self._worker.options.hold_ms} is over", "timeout")
        elif not wait.is_over:
            self._read_receipts(wait)
        return wait.is_over or now >= wait.due_at

    def _read_receipts(self, wait: _Wait) -> None:
        """End a wait with the first problem, or when all sources have pushed all they have."""
        for index in range(min(wait.num_tickets, len(wait.mailboxes))):
            receipt = None if index in wait.receipts else wait.mailboxes[index].read(Receipt)
            if receipt is None:
                continue
            wait.receipts.add(index)
            fits = receipt.prompt == wait.order.prompt
            problem = receipt.problem or ("" if fits else "the receipt is of another prompt")
            if problem or len(wait.receipts) == len(wait.sources):
                wait.end(problem, "not_sent")

    def _work(self, wait: _Wait) -> None:
        """Send the ticket or check the link, and withdraw and report a wait that is over."""
        request_id = wait.order.request_id
        problem = reason = ""
        try:
            if not wait.is_over:
                self._check_links(wait) if wait.has_sent_tickets else self._send_tickets(wait)
        except (LLMException, Incompatible, Unreachable, ValueError) as error:
            problem, reason = str(error), reason_of(error)
        except Exception:
            logger.exception("request %s: waiting for it failed", request_id)
            problem, reason = "an error of the consumer", "error"
        if problem:
            with self._lock:
                wait.end(problem, reason)
        try:
            if wait.is_over:
                self._end(wait)
        except Exception:
            # Blocks whose key may be alive must not be reported: that would risk wrong bytes.
            logger.exception("request %s: its key is not withdrawn yet", request_id)
            time.sleep(_RETRY_S)

    def _send_tickets(self, wait: _Wait) -> None:
        """Publish the blocks and send the tickets that the sources do not have yet."""
        order, worker = wait.order, self._worker
        if not wait.sources:
            block_sizes = order.prefill.block_sizes or worker.layout.block_sizes
            sources = self._sources.find(order.prefill.ranks, block_sizes)
            if len(sources) > _MOST_SOURCES:
                raise Incompatible(f"{len(sources)} ranks of the producer hold this worker's part")
            wait.sources = sources
        while not wait.has_sent_tickets:
            rank, source = wait.sources[wait.num_tickets]
            self._links.link(rank, source.expected)
            if order.blocks and wait.caches is None:
                wait.caches = worker.publish(wait.key)
                for index in range(len(wait.sources)):
                    key = wait.receipt_key + index
                    wait.mailboxes.append(Mailbox(worker.cache_manager, worker.cluster_id, key))
            if not self._send_ticket(wait, rank, source):
                return
            wait.num_tickets += 1
        if not order.blocks:
            wait.end("")

    def _send_ticket(self, wait: _Wait, rank: RankAddress, source: Source) -> bool:
        """Send a ticket; returns False if the producer does not know the request yet."""
        ticket = self._ticket(wait)
        slot = self._slot(ticket, source)
        key = mailbox_key_of_slot(wait.order.prefill.mailbox_key, slot)
        try:
            send_message(self._worker.cache_manager, BlocksCacheKey(rank.cluster_id, key), ticket)
        except LLMException as error:
            if (
                error.status_code != LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
            ):  # the usual one: too early
                path = self._worker.path_to(rank.cluster_id)
                self._reports.counts.add("fetch_errors", path, error.status_code.name)
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
            return False
        return True

    def _ticket(self, wait: _Wait) -> Ticket:
        order, own = wait.order, self._worker.rank_layouts
        return Ticket(
            cluster_id=self._worker.cluster_id,
            key=wait.key,
            receipt_key=wait.receipt_key + wait.num_tickets,
            prompt=order.prompt,
            first=order.first,
            blocks=order.blocks,
            num_tokens=order.num_tokens,
            block_size=self._worker.layout.block_sizes[0],
            tp_size=own.tp_size,
            rank=own.rank,
            layers=own.stage.span,
            stage=own.stage.rank,
            stages=order.stages if own.stage.count > 1 else (own.stage.span,),
        )

    def _slot(self, ticket: Ticket, source: Source) -> int:
        """Return the place of this worker among those that load from a source, as it counts."""
        stages = [None if each is None else range(*each) for each in ticket.stages]
        stage = overlapping(source.stage, stages, ticket.stage).index(ticket.stage)
        return stage * len(source.readers) + ticket.rank - source.readers.start

    def _check_links(self, wait: _Wait) -> None:
        wait.due_at = time.monotonic() + _LINK_CHECK_S
        for rank, _ in wait.sources:
            try:
                self._worker.instance.describe_link(rank.cluster_id)
            except LLMException:
                self._links.drop(rank)
                raise

    def _end(self, wait: _Wait) -> None:
        """Withdraw the blocks, then report the request."""
        order = wait.order
        for mailbox in wait.mailboxes:
            mailbox.close()
        if wait.caches is not None:
            self._worker.withdraw(wait.caches)
        with self._lock:
            self._dispatcher.jobs.pop(order.request_id, None)
        if order.blocks:
            self._count(wait)
            self._reports.add_loaded(order.request_id, order.blocks if wait.problem else ())
        if wait.problem:
            logger.warning(
                "request %s: %d of its blocks were not received and will be recomputed: %s",
                order.request_id,
                len(order.blocks),
                wait.problem,
            )

    def _count(self, wait: _Wait) -> None:
        """Count a request that has been received, or is recomputed."""
        counts, parts = self._reports.counts, self._worker.layout.parts
        if wait.reason:
            counts.add("requests_recomputed", wait.reason)
        if wait.problem:
            return
        path = self._worker.path_to(wait.sources[0][0].cluster_id)
        bytes_per_block = sum(len(part.addrs) * part.block_bytes for part in parts)
        seconds = time.monotonic() - (wait.deadline - self._hold_s)
        counts.add("requests_fetched", path)
        counts.add("fetched_bytes", path, by=bytes_per_block * len(wait.order.blocks))
        counts.observe("fetch_seconds", path, value=seconds)
