"""Byte tokenizer, and prompts of several requests cut from one text."""

from __future__ import annotations

import random
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

BEGIN = 256
VOCABULARY = 257

_SHIPPED_TEXT = "lighthouse.txt"
# Prompt lengths of successive requests, as parts of the longest: clearly unlike each other, and
# the first is not the longest, so that decoding starts while longer prompts are still prefilled.
_LENGTHS = (0.35, 1.0, 0.15, 0.65, 0.5, 0.8, 0.25, 0.9)


def encode(text: bytes) -> list[int]:
    """Return a begin token, then one token per byte."""
    return [BEGIN, *text]


def decode(tokens: list[int]) -> str:
    """Return tokens as text, with dots for invalid UTF-8 and control characters."""
    text = bytes(token for token in tokens if token < BEGIN).decode("utf-8", "replace")
    return "".join(c if c.isprintable() and c != "\N{REPLACEMENT CHARACTER}" else "·" for c in text)


def read_text(path: Path | None) -> bytes:
    """Read the prompt text.

    Args:
        path: The user's file, or None for the text that the package ships.

    Raises:
        OSError: The file cannot be read.
        ValueError: The text is empty.
    """
    if path is None:
        return (resources.files(__package__) / "text" / _SHIPPED_TEXT).read_bytes()
    text = path.read_bytes()
    if not text.strip():
        raise ValueError("the file is empty")
    return text


def cut_prompts(text: bytes, count: int, longest: int, seed: int) -> list[list[int]]:
    """Cut `count` prompts of different lengths out of a text, each from its own place.

    Args:
        text: What to cut from; a prompt is at most all of it.
        count: How many.
        longest: Tokens of the longest prompt, the begin token included.
        seed: Decides the places.
    """
    places = random.Random(seed)
    longest_cut = min(longest - 1, len(text))
    prompts = []
    for index in range(count):
        # Further rounds through the list of lengths are a little shorter each.
        shrink = 1.0 - 0.05 * (index // len(_LENGTHS) % 10)
        length = max(1, round(longest_cut * _LENGTHS[index % len(_LENGTHS)] * shrink))
        start = places.randrange(len(text) - length + 1)
        # StartDecode at a word where one begins in reach, so that prompts read well.
        space = text.find(b" ", start, min(start + 20, len(text) - length))
        start = space + 1 if space >= 0 else start
        prompts.append(encode(text[start : start + length]))
    return prompts
