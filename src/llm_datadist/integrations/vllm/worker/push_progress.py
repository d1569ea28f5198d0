"""Progress of one request that a producer pushes to one worker: what is computed, pushed, next."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container

    from llm_datadist.integrations.vllm.kv_layout import KVLayout
    from llm_datadist.integrations.vllm.step_orders import Send
    from llm_datadist.integrations.vllm.worker.mailbox import Mailbox, Ticket


@dataclass(frozen=True, slots=True)
class Run:
    """Blocks of neighboring tensors that one call can push.

    Attributes:
        part: Part of the layout.
        tensors: Tensors of the part.
        start: First block, by index in the prompt.
        end: The one after the last.
    """

    part: int
    tensors: range
    start: int
    end: int


@dataclass(slots=True)
class PushProgress:
    """One request.

    Attributes:
        order: The scheduler's order.
        layout: The worker's KV memory.
        mailbox: For the consumer's ticket.
        slot: Place of the consumer's worker among those that load from this one.
        blocks: Local blocks of the prompt that are allocated so far.
        computed: Computed tokens, by part and tensor.
        pushed: Blocks, counted from the start of the prompt, that need no push any more, by part
            and tensor.
        ticket: The consumer's, once it has arrived.
        scheduled: Tokens that are computed when the current step ends.
        problem: Why the request is given up; "" while it is not.
        is_finished: Whether all tokens are computed and vLLM keeps the blocks.
        deadline: When to give up if no ticket has arrived; None before the request's end.
        is_busy: Whether a thread works on it.
    """

    order: Send
    layout: KVLayout
    mailbox: Mailbox
    slot: int = 0
    blocks: list[int] = field(default_factory=list)
    computed: list[list[int]] = field(init=False)
    pushed: list[list[int]] = field(init=False)
    ticket: Ticket | None = None
    scheduled: int = 0
    problem: str = ""
    is_finished: bool = False
    deadline: float | None = None
    is_busy: bool = False

    def __post_init__(self) -> None:
        self.computed = [[0] * len(part.addrs) for part in self.layout.parts]
        self.pushed = [[0] * len(part.addrs) for part in self.layout.parts]

    def twin(self, mailbox: Mailbox, slot: int) -> PushProgress:
        """Return the progress of the same request for another worker of the consumer."""
        made = replace(
            self, mailbox=mailbox, slot=slot, blocks=list(self.blocks), ticket=None, is_busy=False
        )
        made.computed = [list(computed) for computed in self.computed]
        return made

    def accept(
        self, ticket: Ticket, repeated: Container[int] = (), layers: range | None = None
    ) -> None:
        """Store the consumer's ticket; one that does not match the request sets `problem`.

        Args:
            ticket: The ticket.
            repeated: Parts of which the worker gets the same from another rank.
            layers: Layers of this worker, one for each tensor of a part; None if not known.
        """
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
        self.pushed = [
            [
                last if index in repeated or not _wants(ticket, layers, tensor) else ticket.first
                for tensor in range(len(part.addrs))
            ]
            for index, part in enumerate(self.layout.parts)
        ]

    @property
    def job_id(self) -> str:
        """Name of this progress, unique among all requests and workers."""
        request_id = self.order.request_id
        return f"{request_id}\0{self.slot}" if self.slot else request_id

    @property
    def awaits_message(self) -> bool:
        """Whether the ticket has not arrived."""
        return self.ticket is None

    @property
    def is_over(self) -> bool:
        """Whether nothing is left but to send the receipt."""
        return bool(self.problem) or (self.is_finished and self.next_run() is None)

    @property
    def is_due(self) -> bool:
        """Whether a thread should work on it now."""
        if self.ticket is None:
            return False
        return bool(self.problem) or self.is_finished or self.next_run() is not None

    def next_run(self) -> Run | None:
        """Return what to push next, or None when everything computed has been pushed."""
        if self.ticket is None or self.problem or not self.ticket.blocks:
            return None
        for part, (computed, pushed) in enumerate(zip(self.computed, self.pushed, strict=True)):
            for first, (tokens, start) in enumerate(zip(computed, pushed, strict=True)):
                end = self._end(tokens)
                if end <= start:
                    continue
                last = first
                while last < len(pushed) and (computed[last], pushed[last]) == (tokens, start):
                    last += 1
                return Run(part, range(first, last), start, end)
        return None

    def note_pushed(self, run: Run) -> None:
        """Record that a run has been pushed."""
        for tensor in run.tensors:
            self.pushed[run.part][tensor] = run.end

    def _end(self, num_tokens: int) -> int:
        """Return how many blocks are complete; the last one is at the end of the prompt."""
        assert self.ticket is not None
        block_size = self.layout.block_sizes[0]
        is_all = num_tokens >= min(self.ticket.num_tokens, self.order.num_tokens)
        end = -(-num_tokens // block_size) if is_all else num_tokens // block_size
        return min(end, self.ticket.first + len(self.ticket.blocks))


def _wants(ticket: Ticket, layers: range | None, tensor: int) -> bool:
    """Return whether the consumer's worker holds the layer of a tensor."""
    if layers is None or ticket.layers is None:
        return True
    first, end = ticket.layers
    return first <= layers[tensor] < end
