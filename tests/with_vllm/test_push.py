"""Push mode: tokens are those of one engine, and no block is left behind."""

from __future__ import annotations

import signal
import time

import pytest

from llm_datadist.testing import Killed
from support.vllm.engines import BLOCK, make_gemma, prompt
from support.vllm.pairs import OFFER, mixed_prompts, pair_of, tokens_of

OPTIONS = {"mode": "push", "hold_ms": 4000, "lease_ms": 6000}
SMALL_STEPS = {"max_num_batched_tokens": 96}


@pytest.fixture(scope="module", params=["auto", "tcp"])
def pair(request, model):
    options = OPTIONS | {"transfer_backend": request.param}
    with pair_of(model, prefill=SMALL_STEPS, **options) as pair:
        yield pair


@pytest.fixture
def clean(pair):
    """The test begins without cached prefixes and ends with all blocks free."""
    pair.reset()
    pair.ranks()
    pair.reset()
    free = [engine.ask("free_blocks") for engine in (pair.prefill, pair.decode)]
    yield
    pair.reset()
    assert [engine.ask("free_blocks") for engine in (pair.prefill, pair.decode)] == free


@pytest.mark.usefixtures("clean")
def test_tokens_equal_the_monolithic_run(pair):
    """The prefill computes 96 tokens a step, of several requests."""
    prompts = mixed_prompts()
    del prompts["p1"]  # one token is computed, not sent
    expected = pair.monolithic(prompts)
    outputs = pair.pushed(prompts)
    assert tokens_of(outputs) == expected
    for name, tokens in prompts.items():
        assert outputs[name]["cached"] == len(tokens) - 1, "not sent but computed"


@pytest.mark.usefixtures("clean")
def test_prefix_hits_on_both_sides(pair):
    head = prompt(77, 5 * BLOCK)
    prompts = {f"h{i}": head + prompt(100 + i, 40 * i) for i in range(4)}
    expected = pair.monolithic(prompts)
    for again in range(2):  # the second time the consumer has all whole blocks
        for name, tokens in prompts.items():
            outputs = pair.pushed({name: tokens}, tag=f"{again}-")
            assert tokens_of(outputs) == {name: expected[name]}
    assert tokens_of(pair.pushed(prompts, tag="3-")) == expected


@pytest.mark.usefixtures("clean")
def test_pulls_work_as_well(pair):
    prompts = {"x": prompt(5, 300)}
    expected = pair.monolithic(prompts)
    assert tokens_of(pair.decoded(prompts, pair.offers(prompts))) == expected


@pytest.mark.usefixtures("clean")
def test_a_producer_that_does_not_come_is_not_waited_for_for_ever(pair):
    prompts = {"x": prompt(6, 300)}
    expected = pair.monolithic(prompts)
    _, awaits = pair.pushes(prompts, tag="alone-")
    done = pair.decode.ask("generate", awaits)
    assert done["alone-x"]["tokens"] == expected["x"]
    assert done["alone-x"]["cached"] == 0


@pytest.mark.usefixtures("clean")
def test_aborts_on_either_side_leave_nothing(pair):
    prompts = {f"r{i}": prompt(300 + i, 300 + 20 * i) for i in range(8)}
    expected = pair.monolithic(prompts)
    sends, awaits = pair.pushes(prompts, tag="a-")
    for request in awaits:
        pair.decode.ask("add", *request)
    for request in sends:
        pair.prefill.ask("add", *request)
    pair.prefill.ask("steps", 0.05)
    pair.prefill.ask("abort", [request[0] for request in sends[1::2]])
    pair.decode.ask("steps", 0.05)
    pair.decode.ask("abort", [request[0] for request in awaits[2::4]])
    pair.prefill.tell("settle", 15)
    left = [request[0] for i, request in enumerate(awaits) if i % 4 != 2]
    done = pair.decode.ask("results", left)
    assert pair.prefill.answer()
    for name in left:
        assert done[name]["tokens"] == expected[name.removeprefix("a-")]
    outputs = pair.pushed(prompts, tag="n-")
    assert tokens_of(outputs) == expected


def test_a_producer_that_is_killed(model):
    """The consumer computes what has not come, in bounded time."""
    prompts = {f"k{i}": prompt(400 + i, 900) for i in range(4)}
    with pair_of(model, prefill=SMALL_STEPS, **OPTIONS) as pair:
        expected = pair.monolithic(prompts, engine=pair.decode)
        sends, awaits = pair.pushes(prompts)
        pair.decode.tell("generate", awaits)
        for request in sends:
            pair.prefill.ask("add", *request)
        pair.prefill.ask("steps", 0.02)
        began = time.monotonic()
        pair.prefill.peer.kill()
        assert pair.prefill.peer.wait() == Killed(signal.SIGKILL)
        done = pair.decode.answer()
        assert time.monotonic() - began < 60
        assert {name: done[name]["tokens"] for name in prompts} == expected
        assert pair.decode.ask("settle", 10)


def test_a_consumer_that_is_killed(model):
    """The producer's blocks come back."""
    prompts = {f"k{i}": prompt(400 + i, 900) for i in range(4)}
    with pair_of(model, prefill=SMALL_STEPS, **OPTIONS) as pair:
        pair.ranks()
        free = pair.prefill.ask("free_blocks")
        sends, awaits = pair.pushes(prompts)
        for request in awaits:
            pair.decode.ask("add", *request)
        for request in sends:
            pair.prefill.ask("add", *request)
        pair.decode.ask("steps", 0.1)
        pair.decode.peer.kill()
        assert pair.prefill.ask("settle", 20), "blocks are held for a dead consumer"
        assert pair.prefill.ask("reset_prefix_cache")
        assert pair.prefill.ask("free_blocks") == free


def test_sliding_windows_are_refused(tmp_path):
    pair = pair_of(make_gemma(tmp_path), **OPTIONS)
    with pytest.raises(Exception, match="blocks of a sliding window may be gone"), pair:
        pass


def test_offers_of_a_producer_say_where_its_workers_are(pair):
    prompts = {"x": prompt(7, 100)}
    offer = pair.offers(prompts)["x"]
    assert offer["ranks"] == pair.ranks()
    assert OFFER == {"do_remote_decode": True}
    assert pair.prefill.ask("settle", 15)
