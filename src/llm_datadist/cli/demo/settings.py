"""Settings of a run of the demo."""

from __future__ import annotations

import math
import mmap
import string

import msgspec

from llm_datadist.cli.demo.messages import Mode
from llm_datadist.cli.demo.model import ModelShape
from llm_datadist.cli.demo.paged_kv import blocks_for


class DemoError(Exception):
    """The demo cannot run or continue; the text is for the user."""


class DemoSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a run: model, prompts (tokens) and transfers."""

    prompts: list[list[int]]
    mode: Mode = "pull"
    backend: str = "auto"
    shape: ModelShape = ModelShape()
    seed: int = 0
    block_size: int = 16
    max_new_tokens: int = 16
    corrupt_block: bool = False
    inject_fault: bool = False

    @property
    def fault_in(self) -> int | None:
        """Index of the request that loses memory: the second one, if there are several."""
        return min(1, len(self.prompts) - 1) if self.inject_fault else None

    def check(self) -> None:
        """Check that the settings fit together.

        Raises:
            DemoError: --inject-fault with another mode, or with blocks that share pages.
        """
        if not self.inject_fault:
            return
        if self.mode != "pull":
            raise DemoError("--inject-fault goes with --mode pull")
        token_bytes = self.shape.kv_heads * self.shape.head_dim * 4
        tokens = mmap.PAGESIZE // math.gcd(token_bytes, mmap.PAGESIZE)
        if self.block_size % tokens:
            raise DemoError(
                f"--inject-fault makes whole pages of {mmap.PAGESIZE} bytes inaccessible: give "
                f"a --block-size that is a multiple of {tokens}"
            )

    @property
    def prompt_blocks(self) -> int:
        """Number of blocks of all prompts, which is the size of the prefill cache."""
        return sum(blocks_for(len(prompt), self.block_size) for prompt in self.prompts)

    @property
    def whole_blocks(self) -> int:
        """Number of blocks of all requests, including generated tokens."""
        new = self.max_new_tokens
        return sum(blocks_for(len(prompt) + new, self.block_size) for prompt in self.prompts)


def request_name(index: int) -> str:
    """Return the name of a request: A, B, ... Z, AA, AB, ..."""
    letters = string.ascii_uppercase
    name = letters[index % 26]
    return name if index < 26 else request_name(index // 26 - 1) + name
