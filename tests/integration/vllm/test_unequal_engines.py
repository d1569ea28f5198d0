"""Engines of unequal tensor-parallel and block sizes: each worker gets what the model says.

What would give another byte is refused, with the values of both engines.
"""

from __future__ import annotations

import ctypes
import dataclasses
import mmap

import numpy as np
import pytest

from llm_datadist.integrations.vllm.worker import pull_progress
from support.vllm.rank_engines import BLOCKS, model_of

SRC = [3, 7, 5, 11, 2, 9, 1, 13]
DST = [10, 9, 4, 6, 21, 15, 2, 8]
TOKENS = 101
libc = ctypes.CDLL(None, use_errno=True)


def prefilled(make, tp_size=1, *, src=SRC, tokens=TOKENS, latent=False, kv_heads=4, **options):
    """A producer with a finished prompt, what it offers, and the model's KV."""
    producer = make("producer", tp_size, latent=latent, kv_heads=kv_heads, **options)
    blocks = src[: -(-tokens // producer.block_size)]
    model = model_of(tokens, latent=latent, kv_heads=kv_heads)
    producer.put(model, blocks)
    return producer, producer.offer(tokens, blocks), model


def check(consumer, model, blocks, count):
    """Every worker has its heads of the tokens, and nothing in other blocks."""
    for rank, side in enumerate(consumer.sides):
        got = consumer.tokens(rank, blocks, count)
        assert (got == model[side.layers, side.heads, :, :count]).all()
        rest = [block for block in range(BLOCKS) if block not in blocks]
        assert not side.kv[:, rest].any()


@pytest.mark.parametrize(
    ("producers", "consumers", "kv_heads", "backend"),
    [
        (1, 2, 4, "host"),
        (2, 1, 4, "host"),
        (2, 1, 4, "tcp"),
        (2, 4, 2, "host"),
        (2, 4, 2, "tcp"),
        (4, 2, 2, "host"),
        (4, 1, 1, "host"),
        (1, 4, 2, "host"),
    ],
)
def test_each_worker_gets_its_heads_and_every_producer_its_blocks_back(
    make, producers, consumers, kv_heads, backend
):
    options = {"kv_heads": kv_heads, "transfer_backend": backend, "checksum": "crc32c"}
    producer, params, model = prefilled(make, producers, **options)
    consumer = make("consumer", consumers, **options)
    assert consumer.load(TOKENS, params, DST[:4]) == TOKENS - 1
    assert consumer.loaded() == [set()] * consumers
    producer.sent()
    check(consumer, model, DST[:4], TOKENS - 1)


@pytest.mark.parametrize(
    ("producers", "consumers", "src_size", "dst_size"),
    [
        (1, 1, 16, 64),
        (1, 1, 64, 16),
        (2, 1, 32, 32),
        (2, 1, 64, 16),
        (1, 2, 16, 64),
        (2, 2, 16, 64),
    ],
)
def test_latents_in_blocks_of_another_size(make, producers, consumers, src_size, dst_size):
    producer, params, model = prefilled(make, producers, latent=True, block_size=src_size)
    consumer = make("consumer", consumers, latent=True, block_size=dst_size)
    dst = DST[: -(-TOKENS // dst_size)]
    consumer.load(TOKENS, params, dst)
    assert consumer.loaded() == [set()] * consumers
    producer.sent()
    check(consumer, model, dst, TOKENS - 1)


@pytest.mark.parametrize(("src_size", "dst_size"), [(16, 64), (64, 16)])
@pytest.mark.parametrize("num_local", [0, 64])
def test_a_local_prefix_and_many_pulls(make, monkeypatch, src_size, dst_size, num_local):
    monkeypatch.setattr(pull_progress, "PULL_BYTES", 1)
    producer, params, model = prefilled(make, latent=True, block_size=src_size)
    consumer = make("consumer", latent=True, block_size=dst_size)
    dst = DST[: -(-TOKENS // dst_size)]
    consumer.load(TOKENS, params, dst, num_local)
    assert consumer.loaded() == [set()]
    producer.sent()
    got = consumer.tokens(0, dst, TOKENS - 1)
    assert (got[..., num_local:, :] == model[..., num_local : TOKENS - 1, :]).all()
    assert not got[..., :num_local, :].any()


@pytest.mark.parametrize(("producers", "consumers"), [(1, 2), (2, 1)])
def test_several_groups_of_which_one_has_left_a_block_behind(make, producers, consumers):
    """As a sliding window does: nothing is read into it, and nothing from it."""
    options = {"groups": 2}
    producer, params, model = prefilled(make, producers, **options)
    consumer = make("consumer", consumers, **options)
    params["blocks"][1][0] = 0
    lists = [DST[:4], [0, *DST[1:4]]]
    consumer.load(TOKENS, params, lists=lists)
    assert consumer.loaded() == [set()] * consumers
    producer.sent()
    for rank, side in enumerate(consumer.sides):
        got = consumer.tokens(rank, DST[:4], TOKENS - 1)
        held = model[:, side.heads, :, : TOKENS - 1]
        assert (got[0::2] == held[0::2]).all()
        assert (got[1::2, ..., 32:, :] == held[1::2, ..., 32:, :]).all()
        assert not got[1::2, ..., :32, :].any()


def test_the_blocks_decide_what_is_read(make):
    """Negative control: with the producer's blocks off by one, other bytes arrive."""
    producer, params, model = prefilled(make, 2)
    consumer = make("consumer")
    params = {**params, "blocks": [[block + 1 for block in params["blocks"][0]]]}
    consumer.load(TOKENS, params, DST[:4])
    assert consumer.loaded() == [set()]
    producer.sent()
    assert (consumer.tokens(0, DST, TOKENS - 1) != model[..., : TOKENS - 1, :]).any()


def test_a_producer_waits_for_every_worker_of_a_larger_consumer(make):
    producer, params, _ = prefilled(make)
    consumer = make("consumer", 2)
    first, second = consumer.sides
    consumer.sides = [first]
    consumer.load(TOKENS, params, DST[:4])
    consumer.sides += [second]
    assert first.until(loaded=["d"]) == (set(), set())
    producer.carry_out()
    assert producer.sides[0].worker.take_ended()[0] == set()
    assert second.until(loaded=["d"], orders=consumer.last) == (set(), set())
    producer.sent()


@pytest.mark.parametrize(("producers", "consumers"), [(2, 1), (1, 2)])
def test_a_dismissed_offer_goes_back_to_every_producer(make, producers, consumers):
    producer, params, _ = prefilled(make, producers)
    consumer = make("consumer", consumers)
    assert consumer.load(TOKENS, params, DST[:4], TOKENS - 1) == 0
    producer.sent()


@pytest.mark.expects_log("will be recomputed", "fault", "LLM_SUSPECT_REMOTE_ERROR")
def test_a_bad_page_of_one_producer_costs_the_blocks_from_it_on(make):
    producer, params, model = prefilled(make, 2)
    consumer = make("consumer")
    page = producer.sides[1].kv[1, SRC[2]]
    address = ctypes.c_void_p(page.ctypes.data)
    assert libc.mprotect(address, page.nbytes, 0) == 0
    try:
        consumer.load(TOKENS, params, DST[:4])
        assert consumer.loaded() == [set(DST[2:4])]
    finally:
        libc.mprotect(address, page.nbytes, mmap.PROT_READ | mmap.PROT_WRITE)
    assert (consumer.tokens(0, DST, 64) == model[:, :, :, :64]).all()
    producer.sent()


@pytest.mark.expects_log("will be recomputed: no link", "link_clusters")
def test_a_producer_that_has_ended_costs_all_blocks(make):
    producer, params, _ = prefilled(make, 2)
    consumer = make("consumer")
    producer.sides[1].worker.close()
    consumer.load(TOKENS, params, DST[:4])
    assert consumer.loaded() == [set(DST[:4])]


def refused(make, caplog, consumer, params, *texts, tokens=TOKENS):
    """Load what cannot be loaded: every block is computed, and no byte has arrived."""
    blocks = DST[: -(-tokens // consumer.block_size)]
    consumer.load(tokens, params, blocks)
    assert consumer.loaded() == [set(blocks)] * len(consumer.sides)
    for text in texts:
        assert text in caplog.text
    assert not any(side.kv.any() for side in consumer.sides)


@pytest.mark.expects_log("will be recomputed")
@pytest.mark.parametrize(
    ("produced", "consumed", "text"),
    [
        ({"head_size": 16}, {}, "4 KV heads of 16 DT_FLOAT, 2 planes, CPU_ATTN vec', expected"),
        ({"kv_heads": 8}, {}, "8 KV heads of 8 DT_FLOAT"),
        ({"dtype": "torch.int8"}, {}, "dtype: producer 'torch.int8', expected 'torch.float32'"),
        (
            {"isa": "amx"},
            {},
            "attention backends: producer 'CPU_ATTN amx', expected 'CPU_ATTN vec'",
        ),
        ({"latent": True}, {}, "attention backends: producer 'CPU_MLA', expected 'CPU_ATTN vec'"),
        (
            {"block_size": 64},
            {},
            "size 2 and block size 64, the consumer tensor parallel size 1 and block size 32: CPU_",
        ),
        (
            {"backend": "NEW_ATTN"},
            {"backend": "NEW_ATTN"},
            "not known (model.layers.0.self_attn.attn has the attention backend NEW_ATTN",
        ),
    ],
)
def test_engines_that_do_not_fit(make, caplog, produced, consumed, text):
    producer = make("producer", 2, **produced)
    consumer = make("consumer", **consumed)
    params = producer.offer(TOKENS, SRC[: -(-TOKENS // producer.block_size)])
    refused(make, caplog, consumer, params, text)


@pytest.mark.expects_log("will be recomputed")
def test_swapped_ranks(make, caplog):
    _, params, _ = prefilled(make, 2)
    params = {**params, "ranks": params["ranks"][::-1]}
    text = "tensor parallel rank: producer '1', expected '0'"
    refused(make, caplog, make("consumer"), params, text)


@pytest.mark.expects_log("will be recomputed")
@pytest.mark.parametrize("latent", [False, True])
def test_a_block_size_that_the_producer_does_not_have(make, caplog, latent):
    _, params, _ = prefilled(make, latent=latent)
    params = {**params, "block_sizes": [64]}
    text = "producer '32', expected '64'" if latent else "block size 64, the consumer"
    refused(make, caplog, make("consumer", latent=latent), params, text)


@pytest.mark.expects_log("will be recomputed")
def test_a_rank_is_left_out(make, caplog):
    _, params, _ = prefilled(make, 2)
    params = {**params, "ranks": params["ranks"][:1]}
    text = "tensor parallel size: producer '2', consumer '1'"
    refused(make, caplog, make("consumer"), params, text)


@pytest.mark.expects_log("will be recomputed")
@pytest.mark.parametrize("when", ["from the start", "after the link"])
def test_a_producer_whose_layout_says_something_else(make, caplog, when):
    """Ranks that publish each other's heads: together they have all, and each is wrong."""
    producer = make("producer", 2)
    consumer = make("consumer")
    if when == "after the link":
        consumer.load(TOKENS, producer.offer(TOKENS, SRC[:4]), DST[:4])
        assert consumer.loaded() == [set()]
        producer.sent()
    swap_layouts(producer)
    text = "source 0 of 2 with 4 blocks (3, 7, 5, 11): the peer registered cache"
    refused(make, caplog, consumer, producer.offer(TOKENS, SRC[:4]), text, "src_layouts[0] is")
    producer.sent()


def swap_layouts(producer):
    instances = [side.worker._instance for side in producer.sides]
    layouts = [instance.rank_layouts for instance in instances]
    for instance, each in zip(instances, layouts[::-1], strict=True):
        instance.rank_layouts = dataclasses.replace(instance.rank_layouts, parts=each.parts)


def test_equal_engines_do_no_layout_work(make, monkeypatch):
    producer, params, model = prefilled(make, 2)
    consumer = make("consumer", 2)
    for side in consumer.sides:
        manager = side.worker._instance.cache_manager
        monkeypatch.setattr(type(manager), "pull_resharded", None)
    consumer.load(TOKENS, params, DST[:4])
    assert consumer.loaded() == [set(), set()]
    producer.sent()
    check(consumer, model, DST[:4], TOKENS - 1)
    assert np.count_nonzero(consumer.sides[0].kv) >= model[:, :2, :, : TOKENS - 1].size
