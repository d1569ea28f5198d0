"""One request of the producer in push mode: what is computed, what is sent, and what is next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_datadist.integrations.vllm.kv_layout import KVLayout
    from llm_datadist.integrations.vllm.step_orders import Send
    from llm_datadist.integrations.vllm.worker.mailbox import Mailbox, Ticket

__all__ = ["Run", "PushProgress"]


@dataclass(frozen=True, slots=True)
class Run:
    """Blocks of neighbouring tensors that can be pushed in one call.

    Attributes:
        part: Of the layout.
        tensors: Of the part.
        start: First block, by index in the prompt.
        end: The one after the last.
    """

    part: int
    tensors: range
    start: int
    end: int


@dataclass(slots=True)
class PushProgress:
    """A request.

    Attributes:
        order: What the scheduler's side said of it.
        page: Where the consumer leaves its ticket.
        blocks: Own blocks of the prompt, so far as they are allocated.
        computed: Tokens that are computed, by part and tensor.
        sent: Blocks, counted from the prompt's beginning, that need not be sent any more.
        ticket: The consumer's, once it is there.
        scheduled: Tokens that are computed when the step under way is over.
        problem: Why it is given up; "" while it is not.
        is_finished: Whether the request has ended well: all of it is computed, and its blocks stay.
        deadline: When it is given up if no ticket comes; None before its end.
        is_busy: Whether a thread works on it.
    """

    order: Send
    layout: KVLayout
    page: Mailbox
    blocks: list[int] = field(default_factory=list)
    computed: list[list[int]] = field(init=False)
    sent: list[list[int]] = field(init=False)
    ticket: Ticket | None = None
    scheduled: int = 0
    problem: str = ""
    is_finished: bool = False
    deadline: float | None = None
    is_busy: bool = False

    def __post_init__(self) -> None:
        self.computed = [[0] * len(part.addrs) for part in self.layout.parts]
        self.sent = [[0] * len(part.addrs) for part in self.layout.parts]

    def accept(self, ticket: Ticket) -> None:
        """The consumer's ticket is there; one that does not fit ends the request."""
        self.ticket = ticket
        if not ticket.blocks or self.problem:
            return
        last = -(-ticket.num_tokens // self.layout.block_sizes[0])
        fits = (
            ticket.prompt == self.order.prompt
            and 0 <= ticket.first < last
            and len(ticket.blocks) == last - ticket.first
            and len(set(ticket.blocks)) == len(ticket.blocks)
            and ticket.num_tokens <= self.order.num_tokens
        )
        if not fits:
            self.problem = (
                "the consumer's request is another one; send both with a transfer of their own, "
                "and run both engines with the same --block-size"
            )
            return
        self.sent = [[ticket.first] * len(part.addrs) for part in self.layout.parts]

    @property
    def is_due(self) -> bool:
        """Whether a thread should work on it now."""
        if self.ticket is None or self.is_busy:
            return False
        return bool(self.problem) or self.is_finished or self.next_run() is not None

    def next_run(self) -> Run | None:
        """What to push next, or None when all that is computed has been sent."""
        if self.ticket is None or self.problem or not self.ticket.blocks:
            return None
        for part, (computed, sent) in enumerate(zip(self.computed, self.sent, strict=True)):
            for first, (tokens, start) in enumerate(zip(computed, sent, strict=True)):
                end = self._end(tokens)
                if end <= start:
                    continue
                last = first
                while last < len(sent) and (computed[last], sent[last]) == (tokens, start):
                    last += 1
                return Run(part, range(first, last), start, end)
        return None

    def note_sent(self, run: Run) -> None:
        """A run has been pushed."""
        for tensor in run.tensors:
            self.sent[run.part][tensor] = run.end

    def _end(self, num_tokens: int) -> int:
        """Blocks that are complete: the last one is when all of the prompt is computed."""
        assert self.ticket is not None
        block_size = self.layout.block_sizes[0]
        is_all = num_tokens >= min(self.ticket.num_tokens, self.order.num_tokens)
        end = -(-num_tokens // block_size) if is_all else num_tokens // block_size
        return min(end, self.ticket.first + len(self.ticket.blocks))
