"""The producer's side of a worker in push mode: sends layers as they are computed.

The consumer leaves a ticket that says where its room is; then whatever is computed is pushed there
by threads of this module, while the model computes the next layers. At the end the consumer gets a
receipt, and only that makes it look at the bytes. A request whose blocks vLLM takes away early is
given up: what is still pushed of it may be anything, but no receipt says that it is complete.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from llm_datadist import BlocksCacheKey, LLMException
from llm_datadist.integrations.vllm.worker.mailbox import Mailbox, Receipt, Ticket, send_message
from llm_datadist.integrations.vllm.worker.push_progress import PushProgress

if TYPE_CHECKING:
    from llm_datadist.integrations.vllm.step_orders import Send, StepProgress
    from llm_datadist.integrations.vllm.worker.instance import WorkerInstance
    from llm_datadist.integrations.vllm.worker.wakeup import Changes

__all__ = ["PushProducer"]

logger = logging.getLogger("llm_datadist.vllm")

_FIRST_LOOK_S, _LONGEST_LOOK_S = 0.001, 0.02
"""How often pages are looked at; the longer ago the last request came, the less often."""


class PushProducer:
    """Sends and gives back. Calls of the model's thread never wait for a transfer.

    Args:
        worker: The worker's instance.
        changes: Told when there is something in `take_sent`.
    """

    def __init__(self, worker: WorkerInstance, changes: Changes) -> None:
        self._worker = worker
        self._changes = changes
        self._wake = threading.Condition()
        self._all: dict[str, PushProgress] = {}
        self._step: list[PushProgress] = []
        self._places = _places(worker)
        self._sent: set[str] = set()
        self._closed = False
        self._active_at = time.monotonic()
        self._threads = ThreadPoolExecutor(
            worker.options.concurrent_loads, "llm_datadist-vllm-push"
        )
        self._dispatcher = threading.Thread(
            target=self._dispatch, name="llm_datadist-vllm-pusher", daemon=True
        )
        self._dispatcher.start()

    def send(self, order: Send) -> None:
        """A request has come that will be sent."""
        try:
            page = Mailbox(self._worker.cache_manager, self._worker.cluster_id, order.key)
        except LLMException as error:
            logger.error("request %s: it cannot be sent: %s", order.request_id, str(error))
            return
        with self._wake:
            self._all[order.request_id] = PushProgress(order, self._worker.layout, page)
            self._note_change()

    def begin_step(self, progress: list[StepProgress]) -> None:
        """The model is about to compute this."""
        with self._wake:
            self._step = []
            for each in progress:
                sending = self._all.get(each.request_id)
                if sending is not None:
                    sending.blocks += each.blocks
                    sending.scheduled = each.num_tokens
                    self._step.append(sending)

    def layer_saved(self, layer: str) -> None:
        """The model has computed a layer of the step."""
        places = self._places.get(layer)
        if not self._step or places is None:
            return
        with self._wake:
            for sending in self._step:
                for part, tensor in places:
                    sending.computed[part][tensor] = sending.scheduled
            self._note_change()

    def end_step(self) -> None:
        """The model has computed all layers of the step."""
        if not self._step:
            return
        with self._wake:
            for sending in self._step:
                for computed in sending.computed:
                    computed[:] = [sending.scheduled] * len(computed)
            self._step = []
            self._note_change()

    def finish(self, request_id: str) -> None:
        """All is computed: keep the blocks until they are sent or nobody has come in time."""
        with self._wake:
            sending = self._all.get(request_id)
            if sending is None:  # it could not be sent
                self._sent.add(request_id)
            else:
                sending.is_finished = True
                sending.deadline = time.monotonic() + self._worker.options.hold_ms / 1000
            self._note_change()
        self._changes.notify()

    def give_up(self, request_id: str, problem: str) -> None:
        """The request's blocks are gone, or will be soon; whoever waits for it is told."""
        with self._wake:
            sending = self._all.get(request_id)
            if sending is not None:
                sending.problem = sending.problem or problem
                sending.deadline = time.monotonic() + self._worker.options.hold_ms / 1000
            self._note_change()

    def take_sent(self) -> set[str]:
        """Requests whose blocks vLLM can have back; each is returned once."""
        with self._wake:
            sent, self._sent = self._sent, set()
            return sent

    @property
    def is_waiting(self) -> bool:
        """Whether vLLM waits for blocks."""
        return any(sending.is_finished for sending in list(self._all.values()))

    def close(self) -> None:
        """Stop; idempotent. With the instance closed before, what is under way fails at once."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        self._dispatcher.join()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._all.clear()  # pages hold on to the instance
        self._step = []

    # ---- the dispatcher's thread -------------------------------------------------------------

    def _note_change(self) -> None:
        self._active_at = time.monotonic()
        self._wake.notify_all()

    def _dispatch(self) -> None:
        while True:
            with self._wake:
                if self._closed:
                    return
                now = time.monotonic()
                for sending in list(self._all.values()):
                    self._look(sending, now)
                    if sending.is_due:
                        sending.is_busy = True
                        self._threads.submit(self._work, sending)
                quiet_s = now - self._active_at
                waits = any(each.ticket is None for each in self._all.values())
                self._wake.wait(
                    max(_FIRST_LOOK_S, min(_LONGEST_LOOK_S, quiet_s / 16)) if waits else None
                )

    def _look(self, sending: PushProgress, now: float) -> None:
        """Look whether the ticket has come, or will not."""
        if sending.ticket is not None:
            return
        ticket = sending.page.read(Ticket)
        if ticket is not None:
            sending.accept(ticket)
        elif sending.deadline is not None and sending.deadline <= now:
            if not sending.problem:
                logger.warning(
                    "request %s: no consumer has asked for it within hold_ms %d; its blocks are "
                    "taken back",
                    sending.order.request_id,
                    self._worker.options.hold_ms,
                )
            self._end(sending)

    # ---- threads that push -------------------------------------------------------------------

    def _work(self, sending: PushProgress) -> None:
        try:
            self._push_computed(sending)
        except LLMException as error:
            logger.warning(
                "request %s: it cannot be sent: %s", sending.order.request_id, str(error)
            )
            sending.problem = sending.problem or f"the producer could not push it: {error}"
        except Exception:
            logger.exception("request %s: it cannot be sent", sending.order.request_id)
            sending.problem = sending.problem or "an error of the producer"
        with self._wake:
            is_over = self._is_over(sending)
        if is_over:
            self._tell(sending)
        with self._wake:
            sending.is_busy = False
            if is_over:
                self._end(sending)
            self._note_change()

    def _push_computed(self, sending: PushProgress) -> None:
        ticket = sending.ticket
        assert ticket is not None
        while True:
            with self._wake:
                run = None if self._closed else sending.next_run()
                if run is None:
                    return
                src_blocks = sending.blocks[run.start : run.end]
            dst_blocks = ticket.blocks[run.start - ticket.first : run.end - ticket.first]
            self._worker.cache_manager.push_blocks(
                BlocksCacheKey(ticket.cluster_id, ticket.key + run.part),
                self._worker.local_caches[run.part],
                src_blocks,
                dst_blocks,
                src_layer_range=range(run.tensors.start, run.tensors.stop),
                dst_layer_range=range(run.tensors.start, run.tensors.stop),
                tensor_num_per_layer=1,
            )
            with self._wake:
                sending.note_sent(run)

    @staticmethod
    def _is_over(sending: PushProgress) -> bool:
        return bool(sending.problem) or (sending.is_finished and sending.next_run() is None)

    def _tell(self, sending: PushProgress) -> None:
        """Say to the consumer that nothing more comes, unless it expects nothing."""
        ticket = sending.ticket
        assert ticket is not None
        if not ticket.blocks:
            return
        receipt = Receipt(prompt=sending.order.prompt, problem=sending.problem)
        key = BlocksCacheKey(ticket.cluster_id, ticket.receipt_key)
        try:
            send_message(self._worker.cache_manager, key, receipt)
        except LLMException as error:
            logger.info(
                "request %s: the consumer could not be told that it is %s: %s",
                sending.order.request_id,
                "given up" if sending.problem else "complete",
                str(error),
            )

    def _end(self, sending: PushProgress) -> None:
        """Forget a request; vLLM gets its blocks back if it waits for them. Under the lock."""
        request_id = sending.order.request_id
        if self._all.get(request_id) is sending:
            del self._all[request_id]
        sending.page.close()
        if sending.is_finished:
            self._sent.add(request_id)
            self._changes.notify()


def _places(worker: WorkerInstance) -> dict[str, list[tuple[int, int]]]:
    """Layer -> its tensors (part, index in it), of parts with one layer for each tensor."""
    places: dict[str, list[tuple[int, int]]] = {}
    for index, part in enumerate(worker.layout.parts):
        if len(part.layers) == len(part.addrs):
            for tensor, layer in enumerate(part.layers):
                places.setdefault(layer, []).append((index, tensor))
    return places
