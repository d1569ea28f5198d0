"""Engines that die, freeze and abort while KV caches move: right tokens, and no block lost."""

from __future__ import annotations

import random
import signal
import time

import pytest

from llm_datadist.testing import Killed
from support.vllm.engines import make_model, prompt
from support.vllm.pairs import pair_of, tokens_of

PROMPTS = {f"r{i}": prompt(700 + i, 900) for i in range(6)}
BIG = {"num_gpu_blocks_override": 300, "kv_cache_memory_bytes": 1 << 30}
OPTIONS = {
    "transfer_backend": "tcp",
    "concurrent_loads": 1,
    "transfer_timeout_ms": 1000,
    "lease_ms": 3000,
    "hold_ms": 8000,
}
MOMENT_S = 0.1  # of some 0.3 s that all transfers take


@pytest.fixture(scope="module")
def big_model(tmp_path_factory):
    """64 KiB of KV for each token: 58 MB for each of the prompts."""
    return make_model(
        tmp_path_factory.mktemp("model"), layers=8, kv_heads=8, head_dim=128, hidden=64
    )


@pytest.fixture
def pair(big_model):
    with pair_of(big_model, prefill=BIG, decode=BIG, **OPTIONS) as pair:
        yield pair


def fetching(pair):
    """Have the consumer fetch all prompts, one after the other; return the tokens to expect."""
    expected = pair.monolithic(PROMPTS, 4, engine=pair.decode)
    offers = pair.offers(PROMPTS)
    requests = [[name, tokens, 4, offers[name]] for name, tokens in PROMPTS.items()]
    pair.decode.tell("generate", requests)
    time.sleep(MOMENT_S)
    return expected


def fetched(outputs):
    return sum(output["cached"] == len(PROMPTS["r0"]) - 1 for output in outputs.values())


def test_the_producer_is_killed_while_it_is_read(pair):
    expected = fetching(pair)
    began = time.monotonic()
    pair.prefill.peer.kill()
    assert pair.prefill.peer.wait() == Killed(signal.SIGKILL)
    outputs = pair.decode.answer()
    assert time.monotonic() - began < 60
    assert tokens_of(outputs) == expected
    assert fetched(outputs) < len(PROMPTS), "it died too late"
    assert pair.decode.ask("settle", 10)


def test_the_producer_is_frozen_while_it_is_read(pair):
    expected = fetching(pair)
    began = time.monotonic()
    pair.prefill.peer.freeze()
    try:
        outputs = pair.decode.answer()
    finally:
        pair.prefill.peer.thaw()
    assert time.monotonic() - began < 60
    assert tokens_of(outputs) == expected
    assert fetched(outputs) < len(PROMPTS), "it froze too late"
    assert pair.prefill.ask("settle", 20), "blocks are left behind"
    time.sleep(3)  # the consumer has stopped asking it for link_timeout_ms
    pair.reset()
    outputs = pair.decoded(PROMPTS, pair.offers(PROMPTS, tag="n-"), 4, tag="n-")
    assert tokens_of(outputs) == expected
    assert fetched(outputs) == len(PROMPTS), "the thawed producer is not used again"


def test_the_consumer_is_killed_while_it_reads(pair):
    free = pair.prefill.ask("free_blocks")
    fetching(pair)
    pair.decode.peer.kill()
    assert pair.prefill.ask("settle", 20), "blocks are held for a dead consumer"
    assert pair.prefill.ask("reset_prefix_cache")
    assert pair.prefill.ask("free_blocks") == free


@pytest.mark.parametrize("mode", ["pull", "push"])
def test_a_hundred_requests_with_random_aborts(model, mode):
    chance = random.Random(mode)
    prompts = {f"r{i}": prompt(chance.random(), chance.randrange(2, 700)) for i in range(100)}
    with pair_of(model, mode=mode, hold_ms=3000, lease_ms=6000) as pair:
        expected = pair.monolithic(prompts, 4)
        pair.reset()
        if mode == "push":
            pair.ranks()
            pair.reset()
        free = [engine.ask("free_blocks") for engine in (pair.prefill, pair.decode)]
        names = list(prompts)
        for first in range(0, 100, 10):
            batch = {name: prompts[name] for name in names[first : first + 10]}
            survivors = [name for name in batch if chance.random() < 0.6]
            if mode == "push":
                sends, awaits = pair.pushes(batch, 4)
                for request in sends:
                    pair.prefill.ask("add", *request)
            else:
                offers = pair.offers(batch)
                awaits = [[name, tokens, 4, offers[name]] for name, tokens in batch.items()]
            chance.shuffle(awaits)
            for request in awaits:
                pair.decode.ask("add", *request)
            for engine in (pair.prefill, pair.decode):
                engine.tell("steps", chance.choice([0.0, 0.02, 0.1]))
            for engine in (pair.prefill, pair.decode):
                engine.answer()
            pair.decode.ask("abort", [name for name in batch if name not in survivors])
            if mode == "push":
                pair.prefill.ask("abort", [name for name in batch if chance.random() < 0.3])
                pair.prefill.tell("settle", 20)
            done = pair.decode.ask("results", survivors)
            if mode == "push":
                assert pair.prefill.answer()
            assert {name: done[name]["tokens"] for name in survivors} == {
                name: expected[name] for name in survivors
            }
        pair.reset()
        assert [engine.ask("free_blocks") for engine in (pair.prefill, pair.decode)] == free
