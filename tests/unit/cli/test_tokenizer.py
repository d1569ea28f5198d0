"""Bytes as tokens, and prompts cut from a text."""

from __future__ import annotations

import pytest

from llm_datadist.cli.demo.tokenizer import (
    BEGIN,
    VOCABULARY,
    cut_prompts,
    decode,
    encode,
    read_text,
)


def test_text_survives():
    tokens = encode("Grüße, Welt".encode())
    assert tokens[0] == BEGIN
    assert max(tokens) < VOCABULARY
    assert decode(tokens) == "Grüße, Welt"


def test_noise_is_printable():
    assert decode([7, 255, 65, 10, BEGIN]) == "··A·"


def test_the_package_ships_a_text():
    assert len(read_text(None)) > 4000


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "empty.txt"
    path.write_text(" \n")
    with pytest.raises(ValueError, match="empty"):
        read_text(path)


def test_prompts_differ_in_length_and_place():
    prompts = cut_prompts(read_text(None), 8, 1000, seed=3)
    lengths = [len(prompt) for prompt in prompts]
    assert len(set(lengths)) == 8
    assert max(lengths) == 1000
    assert len({tuple(prompt[:50]) for prompt in prompts}) == 8
    assert cut_prompts(read_text(None), 8, 1000, seed=3) == prompts
    assert cut_prompts(read_text(None), 8, 1000, seed=4) != prompts


def test_a_text_shorter_than_asked_for():
    prompts = cut_prompts(b"tiny", 20, 1000, seed=0)
    assert {len(prompt) for prompt in prompts} <= set(range(2, 6))
