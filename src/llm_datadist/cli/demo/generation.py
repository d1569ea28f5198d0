"""Greedy decoding of a batch of requests, used by the decode process and the reference."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_datadist.cli.demo.model import Floats, Llama
    from llm_datadist.cli.demo.paged_kv import BlockTable, PagedKvCache


def greedy(logits: Floats) -> int:
    """Return the most likely token."""
    return int(np.argmax(logits))


class Generation:
    """One request being decoded."""

    def __init__(self, prompt_tokens: int, first_token: int, table: BlockTable) -> None:
        self.table = table
        self.tokens: list[int] = [first_token]
        self._prompt_tokens = prompt_tokens
        self._digest = hashlib.blake2b(digest_size=16)

    @property
    def position(self) -> int:
        """Position of the newest token in the request."""
        return self._prompt_tokens + len(self.tokens) - 1

    @property
    def digest(self) -> str:
        """Digest of the bits of every logit so far."""
        return self._digest.hexdigest()

    def extend(self, logits: Floats) -> int:
        """Choose the next token."""
        self._digest.update(logits.tobytes())
        self.tokens.append(greedy(logits))
        return self.tokens[-1]


def decode_step(
    model: Llama, cache: PagedKvCache, running: Mapping[int, Generation], slots: int
) -> dict[int, int]:
    """Decode one token of every running request, by slot."""
    tokens, positions = [0] * slots, [0] * slots
    tables: list[BlockTable | None] = [None] * slots
    for slot, generation in running.items():
        tokens[slot] = generation.tokens[-1]
        positions[slot] = generation.position
        tables[slot] = generation.table
    logits = model.decode(tokens, positions, cache, tables)
    return {slot: generation.extend(logits[slot]) for slot, generation in running.items()}
