"""The consumer's side of a worker in push mode: makes room, and waits until it is filled.

A request's room is reachable under a key of its own, which only its ticket tells. When the receipt
is there, or the wait is over for another reason, the key is withdrawn, and only *after that* the
request is reported: withdrawing is final, so nothing that the producer still pushes can land in
blocks that vLLM uses, for this request or for another one.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_datadist import BlocksCacheKey, LLMException, LLMStatusCode
from llm_datadist.integrations.vllm.kv_layout import MAX_KEY, MAX_PARTS
from llm_datadist.integrations.vllm.worker.mailbox import Mailbox, Receipt, Ticket, send_message
from llm_datadist.integrations.vllm.worker.producer_links import (
    Incompatible,
    ProducerLinks,
    Unreachable,
)
from llm_datadist.integrations.vllm.worker.pull_consumer import Loaded

if TYPE_CHECKING:
    from llm_datadist import Cache
    from llm_datadist.integrations.vllm.step_orders import Receive
    from llm_datadist.integrations.vllm.worker.instance import WorkerInstance
    from llm_datadist.integrations.vllm.worker.wakeup import Changes

__all__ = ["PushConsumer"]

logger = logging.getLogger("llm_datadist.vllm")

_FIRST_LOOK_S, _LONGEST_LOOK_S = 0.001, 0.02
_LINK_CHECK_S = 0.1
_RETRY_S = 1.0
_LINK_GONE = {LLMStatusCode.LLM_NOT_YET_LINK, LLMStatusCode.LLM_LINK_FAILED}


@dataclass(slots=True)
class _Waiting:
    """A request.

    Attributes:
        order: What the scheduler's side said of it.
        deadline: When the wait is over in any case.
        is_told: Whether the producer has the ticket.
        caches: Registrations of the room, once it is made.
        page: For the receipt.
        key: First key of the room; the page's is the last of the same block of keys.
        problem: Why it failed; "" while it has not.
        is_over: Whether nothing is waited for any more.
        is_busy: Whether a thread works on it.
        tell_at: When to offer the ticket again.
        check_at: When to look whether the link is still there.
    """

    order: Receive
    deadline: float
    is_told: bool = False
    caches: list[Cache] | None = None
    page: Mailbox | None = None
    key: int = 0
    problem: str = ""
    is_over: bool = False
    is_busy: bool = False
    tell_at: float = 0.0
    check_at: float = 0.0


class PushConsumer:
    """Awaits. Calls of the model's thread never wait for a transfer.

    Args:
        worker: The worker's instance.
        changes: Told when there is something in `take_loaded`.
    """

    def __init__(self, worker: WorkerInstance, changes: Changes) -> None:
        self._worker = worker
        self._changes = changes
        self._producers = ProducerLinks(worker)
        self._wake = threading.Condition()
        self._all: dict[str, _Waiting] = {}
        self._ended: dict[str, set[int]] = {}
        self._closed = False
        self._active_at = time.monotonic()
        self._threads = ThreadPoolExecutor(
            worker.options.concurrent_loads, "llm_datadist-vllm-await"
        )
        self._dispatcher = threading.Thread(
            target=self._dispatch, name="llm_datadist-vllm-receiver", daemon=True
        )
        self._dispatcher.start()

    def receive(self, order: Receive) -> None:
        """Begin to wait for a request, or let its producer know that nothing is wanted."""
        deadline = time.monotonic() + self._worker.options.hold_ms / 1000
        with self._wake:
            self._all[order.request_id] = _Waiting(order, deadline)
            self._note_change()
        self._changes.notify()

    def abandon(self, request_id: str) -> None:
        """The request is gone; end its wait soon. It is reported all the same."""
        with self._wake:
            waiting = self._all.get(request_id)
            if waiting is not None:
                waiting.problem = "the request was aborted"
                waiting.is_over = True
            self._note_change()

    def take_loaded(self) -> Loaded:
        """The requests that are waited for no more since the last call."""
        with self._wake:
            ended, self._ended = self._ended, {}
        return Loaded(
            set(ended),
            {request_id for request_id, failed in ended.items() if failed},
            set().union(*ended.values()),
        )

    @property
    def is_waiting(self) -> bool:
        """Whether vLLM waits for requests."""
        return any(waiting.order.blocks for waiting in list(self._all.values()))

    def close(self) -> None:
        """Stop; idempotent. With the instance closed before, nothing lands any more."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        self._dispatcher.join()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._all.clear()  # pages hold on to the instance

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
                for waiting in list(self._all.values()):
                    if not waiting.is_busy and self._look(waiting, now):
                        waiting.is_busy = True
                        self._threads.submit(self._work, waiting)
                quiet_s = now - self._active_at
                look_s = max(_FIRST_LOOK_S, min(_LONGEST_LOOK_S, quiet_s / 16))
                self._wake.wait(look_s if self._all else None)

    def _look(self, waiting: _Waiting, now: float) -> bool:
        """Look what has come; return whether there is work to do."""
        if waiting.is_over:
            return True
        if now >= waiting.deadline:
            waiting.problem = f"hold_ms {self._worker.options.hold_ms} is over"
            waiting.is_over = True
            return True
        if not waiting.is_told:
            return now >= waiting.tell_at
        receipt = waiting.page.read(Receipt) if waiting.page is not None else None
        if receipt is not None:
            fits = receipt.prompt == waiting.order.prompt
            other = "" if fits else "the receipt is of another prompt"
            waiting.problem = receipt.problem or other
            waiting.is_over = True
            return True
        return now >= waiting.check_at

    # ---- threads that may wait for the producer ----------------------------------------------

    def _work(self, waiting: _Waiting) -> None:
        try:
            if not waiting.is_over:
                if waiting.is_told:
                    self._check_link(waiting)
                else:
                    self._tell(waiting)
        except (LLMException, Incompatible, Unreachable, ValueError) as error:
            self._fail(waiting, str(error))
        except Exception:
            logger.exception("request %s: waiting for it failed", waiting.order.request_id)
            self._fail(waiting, "an error of the consumer")
        try:
            if waiting.is_over:
                self._end(waiting)
        except Exception:
            # Blocks whose key may be alive are not reported; better none than wrong ones.
            logger.exception("request %s: its key is not withdrawn yet", waiting.order.request_id)
            time.sleep(_RETRY_S)
        with self._wake:
            waiting.is_busy = False
            self._note_change()

    def _fail(self, waiting: _Waiting, problem: str) -> None:
        with self._wake:
            waiting.problem = waiting.problem or problem
            waiting.is_over = True

    def _tell(self, waiting: _Waiting) -> None:
        """Make room and give the producer the ticket; it may not know the request yet."""
        order, worker = waiting.order, self._worker
        rank = order.prefill.ranks[worker.layout.rank]
        self._producers.link(rank)
        if order.blocks and waiting.caches is None:
            waiting.key = _new_key()
            waiting.caches = worker.publish(waiting.key)
            waiting.page = Mailbox(worker.cache_manager, worker.cluster_id, waiting.key + MAX_PARTS)
        ticket = Ticket(
            cluster_id=worker.cluster_id,
            key=waiting.key,
            receipt_key=waiting.key + MAX_PARTS,
            prompt=order.prompt,
            first=order.first,
            blocks=order.blocks,
            num_tokens=order.num_tokens,
        )
        key = BlocksCacheKey(rank.cluster_id, order.prefill.mailbox_key)
        try:
            send_message(worker.cache_manager, key, ticket)
        except LLMException as error:
            if error.status_code in _LINK_GONE:
                self._producers.drop(rank)  # the next attempt links anew
            elif error.status_code == LLMStatusCode.LLM_TIMEOUT:
                self._producers.mark_silent(rank, str(error))
                raise
            elif error.status_code != LLMStatusCode.LLM_KV_CACHE_NOT_EXIST:
                raise
            now = time.monotonic()
            began = waiting.deadline - self._worker.options.hold_ms / 1000
            waiting.tell_at = now + max(0.002, min(0.05, (now - began) / 16))
            return
        waiting.is_told = True
        if not order.blocks:
            waiting.is_over = True

    def _check_link(self, waiting: _Waiting) -> None:
        waiting.check_at = time.monotonic() + _LINK_CHECK_S
        rank = waiting.order.prefill.ranks[self._worker.layout.rank]
        try:
            self._worker.instance.describe_link(rank.cluster_id)
        except LLMException:
            self._producers.drop(rank)
            raise

    def _end(self, waiting: _Waiting) -> None:
        order = waiting.order
        if waiting.page is not None:
            waiting.page.close()
        if waiting.caches is not None:
            self._worker.withdraw(waiting.caches)
        with self._wake:
            self._all.pop(order.request_id, None)
            if order.blocks:
                self._ended[order.request_id] = set(order.blocks) if waiting.problem else set()
        self._changes.notify()
        if waiting.problem:
            logger.warning(
                "request %s: %d of its blocks have not come and will be computed here: %s",
                order.request_id,
                len(order.blocks),
                waiting.problem,
            )


def _new_key() -> int:
    """A key that nobody can guess, with room for the parts of the layout and a page."""
    return (secrets.randbelow(MAX_KEY // (2 * MAX_PARTS) - 1) + 1) * 2 * MAX_PARTS
