"""Engines of unequal pipeline-parallel sizes: each worker gets its layers and heads, in both modes.

What would give another byte is refused, with the values of both engines.
"""

from __future__ import annotations

import pytest

from support.vllm.rank_engines import BLOCKS, LAYERS, model_of

SRC = [3, 7, 5, 11]
DST = [10, 9, 4, 6]
TOKENS = 101
ONE = (range(LAYERS),)
HALVES = (range(2), range(2, 3))
OTHER_HALVES = (range(1), range(1, 3))
THIRDS = tuple(range(layer, layer + 1) for layer in range(3))


def prefilled(make, tp_size=1, **options):
    """A producer with a finished prompt, what it offers, and the model's KV."""
    producer = make("producer", tp_size, **options)
    model = model_of(TOKENS, latent=options.get("latent", False))
    blocks = SRC[: -(-TOKENS // producer.block_size)]
    producer.put(model, blocks)
    return producer, producer.offer(TOKENS, blocks), model


def check(consumer, model, blocks):
    """Every worker has its layers and heads of the tokens, and nothing in other blocks."""
    for rank, side in enumerate(consumer.sides):
        got = consumer.tokens(rank, blocks, TOKENS - 1)
        assert (got == model[side.layers, side.heads, :, : TOKENS - 1]).all()
        rest = [block for block in range(BLOCKS) if block not in blocks]
        assert not side.kv[:, rest].any()


@pytest.mark.parametrize(
    ("producers", "consumers", "options"),
    [
        ((1, HALVES), (1, ONE), {}),
        ((1, THIRDS), (1, ONE), {"transfer_backend": "tcp", "checksum": "crc32c"}),
        ((1, ONE), (1, HALVES), {}),
        ((1, HALVES), (1, HALVES), {}),
        ((1, HALVES), (1, OTHER_HALVES), {}),
        ((1, THIRDS), (1, HALVES), {}),
        ((2, HALVES), (1, ONE), {}),
        ((1, HALVES), (2, ONE), {}),
        ((2, OTHER_HALVES), (4, HALVES), {"transfer_backend": "tcp"}),
        ((2, HALVES), (1, ONE), {"latent": True}),
    ],
)
def test_each_worker_gets_its_layers_and_every_producer_its_blocks_back(
    make, producers, consumers, options
):
    (src_tp, src_stages), (dst_tp, dst_stages) = producers, consumers
    producer, params, model = prefilled(make, src_tp, stages=src_stages, **options)
    consumer = make("consumer", dst_tp, stages=dst_stages, **options)
    assert consumer.load(TOKENS, params, DST) == TOKENS - 1
    assert consumer.loaded() == [set()] * len(consumer.sides)
    producer.sent()
    check(consumer, model, DST)


@pytest.mark.parametrize(("src_size", "dst_size"), [(32, 64), (64, 32)])
def test_layers_of_latents_in_blocks_of_another_size(make, src_size, dst_size):
    options = {"latent": True, "stages": HALVES, "block_size": src_size}
    producer, params, model = prefilled(make, **options)
    consumer = make("consumer", latent=True, block_size=dst_size)
    blocks = DST[: -(-TOKENS // dst_size)]
    consumer.load(TOKENS, params, blocks)
    assert consumer.loaded() == [set()]
    producer.sent()
    check(consumer, model, blocks)


def test_a_producer_waits_for_every_stage_of_its_consumer(make):
    producer, params, _ = prefilled(make)
    consumer = make("consumer", stages=HALVES)
    first, second = consumer.sides
    consumer.sides = [first]
    consumer.load(TOKENS, params, DST)
    consumer.sides += [second]
    assert first.until(loaded=["d"]) == (set(), set())
    producer.carry_out()
    assert producer.sides[0].worker.take_ended()[0] == set()
    assert second.until(loaded=["d"], orders=consumer.last) == (set(), set())
    producer.sent()


def test_a_dismissed_offer_goes_back_to_every_stage(make):
    producer, params, _ = prefilled(make, stages=HALVES)
    consumer = make("consumer")
    assert consumer.load(TOKENS, params, DST, TOKENS - 1) == 0
    producer.sent()


def test_stages_of_layers_without_numbers_need_the_same_stages(make):
    options = {"stages": HALVES, "name": "layer{}".format}
    producer, params, model = prefilled(make, **options)
    consumer = make("consumer", **options)
    consumer.load(TOKENS, params, DST)
    assert consumer.loaded() == [set(), set()]
    producer.sent()
    check(consumer, model, DST)


def refused(make, caplog, params, *texts, **options):
    """Load what cannot be loaded: every block is computed, and no byte has arrived."""
    consumer = make("consumer", **options)
    consumer.load(TOKENS, params, DST)
    assert consumer.loaded() == [set(DST)] * len(consumer.sides)
    for text in texts:
        assert text in caplog.text
    assert not any(side.kv.any() for side in consumer.sides)


def in_order(ranks, *order):
    """Ranks in another order, as if they were the workers of their new places."""
    return [
        {**ranks[index], **{name: ranks[place].get(name) for name in ("stage", "layers")}}
        for place, index in enumerate(order)
    ]


@pytest.mark.expects_log("will be recomputed")
@pytest.mark.parametrize(
    ("tp_size", "order", "text"),
    [
        (1, (1, 0), "layers: producer '2 to 2', expected '0 to 1'"),
        (1, (1, 0), "pipeline parallel rank: producer '1', expected '0'"),
        (2, (1, 0, 2, 3), "tensor parallel rank: producer '1', expected '0'"),
        (2, (0, 2, 1, 3), "tensor parallel rank: producer '0', expected '1'"),
        (2, (2, 3, 0, 1), "layers: producer '2 to 2', expected '0 to 1'"),
    ],
)
def test_swapped_ranks(make, caplog, tp_size, order, text):
    _, params, _ = prefilled(make, tp_size, stages=HALVES)
    ranks = [{"stage": 0, **rank} for rank in params["ranks"]]
    refused(make, caplog, {**params, "ranks": in_order(ranks, *order)}, text)


@pytest.mark.expects_log("will be recomputed")
@pytest.mark.parametrize(
    ("spans", "text"),
    [
        ([(0, 1), (1, 3)], "layers: producer '0 to 1', expected '0 to 0'"),
        ([(0, 1), (1, 2), (2, 3)], "pipeline parallel size: producer '2', expected '3'"),
        ([(0, 2)], "producer has the layers 0 to 1, this worker of the consumer 0 to 2"),
    ],
)
def test_layers_that_the_producer_does_not_hold(make, caplog, spans, text):
    """Wrong ranges, one stage too many, one too few."""
    _, params, _ = prefilled(make, stages=HALVES)
    ranks = [
        {**params["ranks"][min(stage, 1)], "stage": stage, "layers": span}
        for stage, span in enumerate(spans)
    ]
    refused(make, caplog, {**params, "ranks": ranks}, text)


@pytest.mark.expects_log("prompt will be recomputed, because")
@pytest.mark.parametrize(
    ("spans", "text"),
    [
        ([(0, 2), (1, 3)], "rank 0 has the layers 0 to 1, rank 1 1 to 2: they must follow"),
        ([(0, 1), (2, 3)], "rank 0 has the layers 0 to 0, rank 1 2 to 2: they must follow"),
    ],
)
def test_layers_that_overlap_or_have_gaps(make, caplog, spans, text):
    _, params, _ = prefilled(make, stages=HALVES)
    ranks = [{**rank, "layers": span} for rank, span in zip(params["ranks"], spans, strict=True)]
    consumer = make("consumer")
    assert consumer.load(TOKENS, {**params, "ranks": ranks}, DST) == 0
    assert text in caplog.text


@pytest.mark.expects_log("prompt will be recomputed, because")
@pytest.mark.parametrize("missing", range(4))
def test_a_missing_rank(make, caplog, missing):
    _, params, _ = prefilled(make, 2, stages=HALVES)
    ranks = [rank for index, rank in enumerate(params["ranks"]) if index != missing]
    assert make("consumer").load(TOKENS, {**params, "ranks": ranks}, DST) == 0
    assert "the producer's 3 workers have the pipeline-parallel ranks" in caplog.text


@pytest.mark.expects_log("will be recomputed")
def test_a_producer_that_publishes_other_layers(make, caplog):
    """Its facts are right, its published layout is not."""
    producer = make("producer", stages=THIRDS)
    instances = [side.worker._instance for side in producer.sides]
    layouts = [instance.rank_layouts for instance in instances]
    for instance, other in zip(instances, layouts[1:] + layouts[:1], strict=True):
        instance.rank_layouts = other
    text = "source 0 of 3 with 4 blocks (3, 7, 5, 11): the peer registered cache"
    refused(make, caplog, producer.offer(TOKENS, SRC), text, "src_layouts[0] is")


@pytest.mark.expects_log("will be recomputed")
@pytest.mark.parametrize("kind", ["backend", "names"])
def test_workers_that_are_not_understood_need_the_same_stages(make, caplog, kind):
    name = {"name": "layer{}".format} if kind == "names" else {"backend": "NEW_ATTN"}
    text = {
        "backend": "has the attention backend NEW_ATTN",
        "names": "pipeline parallel size 2, the consumer 1, and which worker holds which layers",
    }[kind]
    _, params, _ = prefilled(make, stages=HALVES, **name)
    refused(make, caplog, params, text, **name)
