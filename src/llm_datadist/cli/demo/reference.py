"""Reference process: the same model, each request from prompt to last token in one process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from llm_datadist.cli.demo.generation import Generation, decode_step, greedy
from llm_datadist.cli.demo.messages import Finished, Ready, Setup, Stop, Stopped, Submit, Token
from llm_datadist.cli.demo.model import Llama
from llm_datadist.cli.demo.paged_kv import BlockPool, PagedKvCache, blocks_for

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_datadist.cli.demo.channel import Channel, Inbox


def generate(
    model: Llama,
    cache: PagedKvCache,
    pool: BlockPool,
    prompt: Sequence[int],
    max_new_tokens: int,
    slot: int,
    slots: int,
    on_token: Callable[[int], None] = lambda _token: None,
) -> Generation:
    """Prefill a prompt and decode greedily, alone, in the given slot of the batch."""
    blocks = pool.take(blocks_for(len(prompt) + max_new_tokens, cache.block_size))
    table = np.asarray(blocks, np.intp)
    first_token = greedy(model.prefill(prompt, cache, table))
    generation = Generation(len(prompt), first_token, table)
    on_token(first_token)
    while len(generation.tokens) < max_new_tokens:
        on_token(decode_step(model, cache, {slot: generation}, slots)[slot])
    pool.give_back(blocks)
    return generation


def run_reference(setup: Setup, inbox: Inbox, channel: Channel) -> None:
    """Execute messages until Stop."""
    shape = setup.shape
    model = Llama(shape, setup.seed)
    cache = PagedKvCache(
        shape.layers, setup.num_blocks, setup.block_size, shape.kv_heads, shape.head_dim
    )
    pool = BlockPool(range(setup.num_blocks), setup.seed + 3)
    channel.send(Ready())
    while True:
        match inbox.get():
            case Submit(request, prompt):

                def report(token: int, request: int = request) -> None:
                    channel.send(Token(request, token, time.monotonic_ns()))

                generation = generate(
                    model, cache, pool, prompt, setup.max_new_tokens, request, setup.slots, report
                )
                channel.send(Finished(request, generation.tokens, generation.digest))
            case Stop():
                channel.send(Stopped())
                return
            case message:
                raise TypeError(f"unexpected message {message!r}")
