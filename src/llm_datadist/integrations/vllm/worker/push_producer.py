"""Producer in push mode: pushes layers into the consumer's blocks while the model computes.

The consumer sends a ticket that names its blocks; from then on, threads push what is computed while
the model computes the next layers. At the end the producer sends a receipt, and only after a
receipt without a problem does the consumer use the bytes. Each of several workers of a consumer
that load from this one has a ticket, a progress and a receipt of its own. If vLLM takes a request's
blocks away early, the request is given up: bytes that are still pushed may be wrong, but the
receipt says so.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from llm_datadist import BlocksCacheKey, LLMException
from llm_datadist.integrations.vllm.kv_transfer_params import mailbox_key_of_slot
from llm_datadist.integrations.vllm.rank_layouts import Indivisible, peers_of
from llm_datadist.integrations.vllm.request_traces import trace_of, transfer_id
from llm_datadist.integrations.vllm.stages import overlapping
from llm_datadist.integrations.vllm.worker.dispatcher import Dispatcher
from llm_datadist.integrations.vllm.worker.mailbox import Mailbox, Receipt, Ticket, send_message
from llm_datadist.integrations.vllm.worker.push_progress import PushProgress

if TYPE_CHECKING:
    from llm_datadist.integrations.vllm.kv_layout import KVLayout
    from llm_datadist.integrations.vllm.step_orders import Send, StepProgress
    from llm_datadist.integrations.vllm.worker.instance import WorkerInstance
    from llm_datadist.integrations.vllm.worker.push_progress import Run
    from llm_datadist.integrations.vllm.worker.reports import Reports

logger: logging.Logger = logging.getLogger("llm_datadist.vllm")

_MOST_READERS = 256


class PushProducer:
    """Pushes requests and reports them as sent. Calls never wait for a transfer.

    Args:
        worker: The worker's instance.
        reports: For requests whose blocks vLLM may reuse.
    """

    def __init__(self, worker: WorkerInstance, reports: Reports) -> None:
        self._worker = worker
        self._reports = reports
        self._hold_s = worker.options.hold_ms / 1000
        self._step: list[PushProgress] = []
        self._tensors = _tensors_by_layer(worker.layout)
        self._dispatcher: Dispatcher[PushProgress] = Dispatcher(
            "push", worker.options.concurrent_loads, self._poll, self._work
        )
        self._lock = self._dispatcher.lock
        self._by_request: dict[str, list[PushProgress]] = {}

    def send(self, order: Send) -> None:
        """Accept a request that will be prefilled and pushed."""
        try:
            mailbox = Mailbox(self._worker.cache_manager, self._worker.cluster_id, order.key)
        except LLMException as error:
            logger.error("request %s: it cannot be sent: %s", order.request_id, str(error))
            return
        with self._lock:
            progress = PushProgress(order, self._worker.layout, mailbox)
            self._dispatcher.jobs[progress.job_id] = progress
            self._by_request[order.request_id] = [progress]
            self._dispatcher.note_change()

    def begin_step(self, steps: list[StepProgress]) -> None:
        """Note what the model is about to compute."""
        with self._lock:
            self._step = []
            for step in steps:
                for progress in self._by_request.get(step.request_id, ()):
                    progress.blocks += step.blocks
                    progress.scheduled = step.num_tokens
                    self._step.append(progress)

    def layer_saved(self, layer: str) -> None:
        """Push a layer of the step, which the model has computed."""
        tensors = self._tensors.get(layer)
        if not self._step or tensors is None:
            return
        with self._lock:
            for progress in self._step:
                for part, tensor in tensors:
                    progress.computed[part][tensor] = progress.scheduled
            self._dispatcher.note_change()

    def end_step(self) -> None:
        """Push all layers of the step, which the model has computed."""
        if not self._step:
            return
        with self._lock:
            for progress in self._step:
                for computed in progress.computed:
                    computed[:] = [progress.scheduled] * len(computed)
            self._step = []
            self._dispatcher.note_change()

    def finish(self, request_id: str) -> None:
        """Keep a computed request's blocks until they are pushed, or no ticket came in time."""
        with self._lock:
            progresses = self._by_request.get(request_id)
            if not progresses:  # `send` failed, or nothing is pushed any more
                self._reports.add_sent(request_id)
                return
            for progress in progresses:
                progress.is_finished = True
                progress.deadline = time.monotonic() + self._hold_s
            self._reports.counts.add("requests_held")
            self._dispatcher.note_change()
        self._reports.note_change()

    def give_up(self, request_id: str, problem: str) -> None:
        """Stop pushing a request whose blocks vLLM reuses; the receipt will state the problem."""
        with self._lock:
            for progress in self._by_request.get(request_id, ()):
                progress.problem = progress.problem or problem
                progress.deadline = time.monotonic() + self._hold_s
                self._dispatcher.note_change()

    @property
    def is_waiting(self) -> bool:
        """Whether vLLM waits for blocks."""
        return any(progress.is_finished for progress in list(self._dispatcher.jobs.values()))

    def close(self) -> None:
        """Stop, and report what is kept; idempotent.

        Close the instance first, so that running pushes fail at once.
        """
        left = self._dispatcher.close()
        for request_id in {each.order.request_id for each in left if each.is_finished}:
            self._reports.count_released("closed")
            self._reports.add_sent(request_id)
        self._by_request.clear()
        self._step = []

    def _poll(self, progress: PushProgress) -> bool:
        """Read the mailbox, and end the request if no ticket came in time; lock held."""
        if progress.ticket is None:
            ticket = progress.mailbox.read(Ticket)
            if ticket is not None:
                self._accept(progress, ticket)
            elif progress.deadline is not None and progress.deadline <= time.monotonic():
                if not progress.problem:
                    logger.warning(
                        "request %s: no consumer has asked for it within hold_ms %d; its blocks "
                        "are taken back",
                        progress.order.request_id,
                        self._worker.options.hold_ms,
                    )
                self._end(progress, "expired")
        return progress.is_due

    def _accept(self, progress: PushProgress, ticket: Ticket) -> None:
        """Take a ticket, and wait for those of the other workers that load from this one."""
        own = self._worker.rank_layouts
        repeated: set[int] = set()
        try:
            readers = self._readers_of(ticket)
            if readers[progress.slot : progress.slot + 1] != [(ticket.stage, ticket.rank)]:
                raise Indivisible(
                    f"its rank {ticket.rank} of {ticket.tp_size} of stage {ticket.stage} of "
                    f"{len(ticket.stages)} loads from another"
                )
            if not self._is_equal(ticket):
                if own.problem:
                    raise Indivisible(own.problem)
                own.check_rows(ticket.block_size)
            for rank in range(peers_of(ticket.tp_size, ticket.rank, own.tp_size).start, own.rank):
                repeated |= own.repeated(rank)
        except (Indivisible, LLMException) as error:
            progress.ticket = ticket
            progress.problem = progress.problem or f"the consumer does not fit: {error}"
            return
        if progress.slot == 0:
            for slot in range(1, len(readers)):
                self._await_ticket(progress, slot)
        progress.accept(ticket, repeated, own.stage.layers)

    def _readers_of(self, ticket: Ticket) -> list[tuple[int, int]]:
        """Return stage and tensor-parallel rank of the consumer's workers that load from this one.

        Raises:
            Indivisible: The consumer's size does not fit, or there are too many.
        """
        own = self._worker.rank_layouts
        ranks = peers_of(own.tp_size, own.rank, ticket.tp_size)
        known = [None if each is None else range(*each) for each in ticket.stages]
        stages = overlapping(own.stage.layers, known, own.stage.rank)
        if len(stages) * len(ranks) > _MOST_READERS:
            raise Indivisible(
                f"{len(stages) * len(ranks)} of its workers load from this one, at most "
                f"{_MOST_READERS} can"
            )
        return [(stage, rank) for stage in stages for rank in ranks]

    def _await_ticket(self, first: PushProgress, slot: int) -> None:
        """Wait for the ticket of another worker of the consumer; lock held."""
        order = first.order
        key = mailbox_key_of_slot(order.key, slot)
        try:
            mailbox = Mailbox(self._worker.cache_manager, self._worker.cluster_id, key)
        except LLMException as error:
            logger.error(
                "request %s: it cannot be sent to all workers: %s", order.request_id, str(error)
            )
            return
        progress = first.twin(mailbox, slot)
        self._dispatcher.jobs[progress.job_id] = progress
        self._by_request[order.request_id].append(progress)
        if any(each is first for each in self._step):
            self._step.append(progress)
        self._dispatcher.note_change()

    def _work(self, progress: PushProgress) -> None:
        """Push what is computed, and send the receipt if that was all."""
        request_id = progress.order.request_id
        try:
            self._push_computed(progress)
        except LLMException as error:
            logger.warning("request %s: it cannot be sent: %s", request_id, str(error))
            progress.problem = progress.problem or f"the producer could not push it: {error}"
        except Exception:
            logger.exception("request %s: it cannot be sent", request_id)
            progress.problem = progress.problem or "an error of the producer"
        with self._lock:
            is_over = progress.is_over
        if is_over:
            self._send_receipt(progress)
            with self._lock:
                self._end(progress, "given_up" if progress.problem else "pushed")

    def _push_computed(self, progress: PushProgress) -> None:
        ticket = progress.ticket
        assert ticket is not None
        while True:
            with self._lock:
                run = None if self._dispatcher.is_closed else progress.next_run()
                if run is None:
                    return
                src_blocks = progress.blocks[run.start : run.end]
            with trace_of(progress.order.trace_headers):
                self._push(progress, run, src_blocks)
            with self._lock:
                progress.note_pushed(run)

    def _push(self, progress: PushProgress, run: Run, src_blocks: list[int]) -> None:
        worker, ticket = self._worker, progress.ticket
        assert ticket is not None
        request_id = transfer_id(progress.order.request_id)
        key = BlocksCacheKey(ticket.cluster_id, ticket.key + run.part)
        local_cache, span = worker.local_caches[run.part], progress.span_of(run)
        if self._is_equal(ticket):
            worker.cache_manager.push_blocks(
                key,
                local_cache,
                src_blocks,
                span.dst_blocks,
                src_layer_range=run.tensors,
                dst_layer_range=run.tensors,
                tensor_num_per_layer=1,
                request_id=request_id,
            )
        else:  # a layer has one tensor
            held = worker.rank_layouts.parts[run.part].layers
            layers = held[run.tensors.start : run.tensors.stop]
            worker.cache_manager.push_resharded(
                [key],
                local_cache,
                src_blocks,
                [span.dst_blocks],
                span.num_tokens,
                src_offset=span.src_offset,
                dst_offset=span.dst_offset,
                layers=layers,
                request_id=request_id,
            )

    def _is_equal(self, ticket: Ticket) -> bool:
        """Return whether the consumer's worker has the same heads, layers and block size."""
        own = self._worker.rank_layouts
        equal = own.tp_size, own.stage.span, self._worker.layout.block_sizes[0]
        return (ticket.tp_size, ticket.layers, ticket.block_size) == equal

    def _send_receipt(self, progress: PushProgress) -> None:
        """Tell the consumer that nothing more is pushed, unless it waits for nothing."""
        ticket = progress.ticket
        assert ticket is not None
        if not ticket.blocks:
            return
        receipt = Receipt(prompt=progress.order.prompt, problem=progress.problem)
        try:
            key = BlocksCacheKey(ticket.cluster_id, ticket.receipt_key)
            send_message(self._worker.cache_manager, key, receipt)
        except (LLMException, ValueError) as error:  # ValueError: the ticket's key is none
            logger.info(
                "request %s: the receipt (%s) did not reach the consumer: %s",
                progress.order.request_id,
                "given up" if progress.problem else "complete",
                str(error),
            )

    def _end(self, progress: PushProgress, reason: str) -> None:
        """Forget a progress; report a request that has no other if vLLM waits for it; lock held.

        Args:
            progress: The progress.
            reason: Why it ends, for the label of a metric.
        """
        request_id = progress.order.request_id
        if self._dispatcher.jobs.get(progress.job_id) is progress:
            del self._dispatcher.jobs[progress.job_id]
        others = [other for other in self._by_request.pop(request_id, ()) if other is not progress]
        if others:
            self._by_request[request_id] = others
        progress.mailbox.close()
        if progress.is_finished and not others:
            self._reports.count_released(reason)
            self._reports.add_sent(request_id)


def _tensors_by_layer(layout: KVLayout) -> dict[str, list[tuple[int, int]]]:
    """Map layers to tensors (part, index in it), for parts that have one tensor per layer."""
    tensors: dict[str, list[tuple[int, int]]] = {}
    for index, part in enumerate(layout.parts):
        if len(part.layers) == len(part.addrs):
            for tensor, layer in enumerate(part.layers):
                tensors.setdefault(layer, []).append((index, tensor))
    return tensors
