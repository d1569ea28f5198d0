"""Progress of one request that a producer pushes to one worker: what is computed, pushed, next."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from llm_datadist.integrations.vllm.kv_transfer_params import MAX_BLOCK_SIZE

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


class Span(NamedTuple):
    """Tokens of a run, and where the consumer wants them.

    Attributes:
        src_offset: Tokens of the run's blocks before the first one that is pushed.
        dst_blocks: The consumer's blocks that get them.
        dst_offset: Tokens of these before the first one.
        num_tokens: How many are pushed.
    """

    src_offset: int
    dst_blocks: list[int]
    dst_offset: int
    num_tokens: int


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
        fits = (
            ticket.prompt == self.order.prompt
            and 0 < ticket.block_size <= MAX_BLOCK_SIZE
            and 0 <= ticket.first * ticket.block_size < ticket.num_tokens <= self.order.num_tokens
            and len(ticket.blocks) == -(-ticket.num_tokens // ticket.block_size) - ticket.first
            and len(set(ticket.blocks)) == len(ticket.blocks)
        )
        if not fits:
            self.problem = (
                "the consumer's request is another one; send both with a transfer of their own"
            )
            return
        first = ticket.first * ticket.block_size // self.layout.block_sizes[0]
        last = self._num_wanted(ticket)
        self.pushed = [
            [
                last if index in repeated or not _wants(ticket, layers, tensor) else first
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

    def span_of(self, run: Run) -> Span:
        """Return the tokens of a run that the consumer wants, and its blocks for them.

        Of equal blocks all tokens are pushed, because a packed block is moved as a whole.
        """
        ticket, src_size = self.ticket, self.layout.block_sizes[0]
        assert ticket is not None
        dst_size = ticket.block_size
        begin = max(run.start * src_size, ticket.first * dst_size)
        end = run.end * src_size
        if dst_size != src_size:
            end = min(end, ticket.num_tokens)
        dst_blocks = ticket.blocks[
            begin // dst_size - ticket.first : -(-end // dst_size) - ticket.first
        ]
        return Span(begin - run.start * src_size, dst_blocks, begin % dst_size, end - begin)

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
        return min(end, self._num_wanted(self.ticket))

    def _num_wanted(self, ticket: Ticket) -> int:
        """Return how many blocks have the tokens that the consumer needs, from the first on."""
        return -(-ticket.num_tokens // self.layout.block_sizes[0])


def _wants(ticket: Ticket, layers: range | None, tensor: int) -> bool:
    """Return whether the consumer's worker holds the layer of a tensor."""
    if layers is None or ticket.layers is None:
        return True
    first, end = ticket.layers
    return first <= layers[tensor] < end
