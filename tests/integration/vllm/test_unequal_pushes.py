"""Push mode between unequal engines: each worker gets its heads, layers and tokens."""

from __future__ import annotations

import msgspec
import pytest

from llm_datadist.integrations.vllm.kv_transfer_params import RankAddress, RemotePrefill
from llm_datadist.integrations.vllm.step_orders import Receive, Send, StepOrders, StepProgress
from llm_datadist.integrations.vllm.worker.push_consumer import PushConsumer
from support.vllm.rank_engines import BLOCKS, WHOLE, model_of

SRC, DST = [3, 7, 5, 11, 2, 12, 8], [10, 9, 4, 6, 1, 13, 15]
TOKENS = 101
NAME = "a random name of a transfer"
HALVED = {"stages": (range(2), range(2, 3))}
HALVES = HALVED | {"consumed": {"stages": WHOLE}}
THIRDS = tuple(range(layer, layer + 1) for layer in range(3))


class Prefill:
    """A producer that computes one prompt, and a consumer that waits for it."""

    def __init__(self, producer, consumer, model):
        self.producer, self.consumer, self.model = producer, consumer, model
        self.src = SRC[: -(-TOKENS // producer.block_size)]
        self.dst = DST[: -(-(TOKENS - 1) // consumer.block_size)]
        self.remote = RemotePrefill(
            transfer=NAME,
            ranks=[side.worker.address for side in producer.sides],
            block_sizes=[producer.block_size],
        )

    def _order(self, engine, **orders):
        for side in engine.sides:
            side.worker.carry_out(StepOrders(**orders), is_idle=False)

    def come(self):
        send = Send("p", self.remote.mailbox_key, "d", TOKENS)
        self._order(self.producer, send=[send])

    def receive(self, first=0, sides=None):
        spans = self.consumer.spans
        order = Receive("d", self.remote, "d", first, self.dst[first:], TOKENS - 1, spans)
        for side in sides or self.consumer.sides:
            side.worker.carry_out(StepOrders(receive=[order]), is_idle=False)

    def compute(self, first, stop, num_tokens):
        """A step of the model, which fills blocks from `first` to `stop`."""
        self._order(self.producer, progress=[StepProgress("p", self.src[first:stop], num_tokens)])
        self.producer.put(self.model[:, :, :, :num_tokens], self.src)
        for side in self.producer.sides:
            for layer in side.names:
                side.worker.layer_saved(layer)
            side.worker.step_saved()

    def finish(self):
        self._order(self.producer, finish=["p"])

    def give_up(self):
        self._order(self.producer, give_up={"p": "its blocks were taken away"})

    def check(self, first=0):
        """All workers report the prompt, and every worker has what it should."""
        assert self.consumer.all_loaded() == [set()] * len(self.consumer.sides)
        self.producer.sent()
        self.check_tokens(first)

    def check_tokens(self, first=0):
        """Every worker has its heads of the tokens, and nothing in other blocks."""
        begin = first * self.consumer.block_size
        for rank, side in enumerate(self.consumer.sides):
            got = self.consumer.tokens(rank, self.dst, TOKENS - 1)[..., begin:, :]
            assert (got == self.model[side.layers, side.heads, :, begin : TOKENS - 1]).all()
            rest = [block for block in range(BLOCKS) if block not in self.dst[first:]]
            assert not side.kv[:, rest].any()


@pytest.fixture
def make(make):
    """Makes a prefill of engines of these sizes."""

    def prefill(producers, consumers, *, consumed=None, latent=False, kv_heads=4, **options):
        options |= {"latent": latent, "kv_heads": kv_heads, "mode": "push"}
        producer = make("producer", producers, **options)
        consumer = make("consumer", consumers, **options | (consumed or {}))
        return Prefill(producer, consumer, model_of(TOKENS, latent=latent, kv_heads=kv_heads))

    return prefill


@pytest.mark.parametrize(
    ("producers", "consumers", "options"),
    [
        (1, 2, {}),
        (2, 1, {}),
        (2, 1, {"transfer_backend": "tcp"}),
        (2, 4, {"kv_heads": 2, "transfer_backend": "tcp"}),
        (4, 2, {"kv_heads": 2}),
        (4, 1, {"kv_heads": 1, "checksum": "crc32c"}),
        (1, 4, {"kv_heads": 2}),
        (2, 1, {"latent": True}),
        (1, 2, {"latent": True}),
        (2, 2, {}),
        (1, 1, HALVES),
        (1, 1, {"latent": True, "transfer_backend": "tcp"} | HALVES),
        (2, 1, HALVES),
        (1, 2, {"checksum": "crc32c"} | HALVES),
        (1, 1, {"consumed": HALVED}),
        (1, 1, {"stages": THIRDS, "consumed": HALVED}),
        (1, 1, HALVED),
        (1, 1, HALVED | {"name": "layer{}".format}),
        (2, 4, {"kv_heads": 2, "transfer_backend": "tcp", "consumed": HALVED}),
        (2, 1, {"stages": THIRDS, "consumed": HALVED}),
    ],
)
@pytest.mark.parametrize("first", ["producer", "consumer"])
def test_each_worker_gets_its_heads_and_every_producer_its_blocks_back(
    make, producers, consumers, options, first
):
    prefill = make(producers, consumers, **options)
    prefill.come()
    if first == "consumer":
        prefill.receive()
    prefill.compute(0, 2, 40)
    prefill.compute(2, 4, TOKENS)
    prefill.finish()
    if first == "producer":
        prefill.receive()
    prefill.check()


@pytest.mark.parametrize(
    ("producers", "consumers", "options"), [(2, 1, {}), (1, 2, {}), (1, 1, HALVES)]
)
def test_what_the_consumer_has_is_not_sent(make, producers, consumers, options):
    prefill = make(producers, consumers, **options)
    prefill.come()
    prefill.receive(first=1)
    prefill.compute(0, 4, TOKENS)
    prefill.finish()
    prefill.check(first=1)


@pytest.mark.parametrize("consumed", [2, HALVED])
def test_a_worker_that_comes_late_gets_all(make, consumed):
    prefill = make(1, 2) if consumed == 2 else make(1, 1, consumed=consumed)
    first, second = prefill.consumer.sides
    prefill.come()
    prefill.receive(sides=[first])
    prefill.compute(0, 4, TOKENS)
    prefill.finish()
    assert first.until(loaded=["d"]) == (set(), set())
    assert prefill.producer.sides[0].worker.take_ended()[0] == set()
    prefill.receive(sides=[second])
    assert second.until(loaded=["d"]) == (set(), set())
    prefill.producer.sent()
    prefill.check_tokens()


@pytest.mark.expects_log("will be recomputed: its blocks were taken away")
@pytest.mark.parametrize(
    ("producers", "consumers", "options"), [(2, 1, {}), (1, 2, {}), (1, 1, HALVES)]
)
def test_a_prompt_that_is_given_up_is_computed_by_every_worker(make, producers, consumers, options):
    prefill = make(producers, consumers, **options)
    prefill.come()
    prefill.receive()
    prefill.compute(0, 2, 64)
    prefill.give_up()
    assert prefill.consumer.all_loaded() == [set(prefill.dst)] * consumers


@pytest.mark.parametrize("first", ["producer", "consumer"])
@pytest.mark.parametrize(
    ("producers", "consumers", "options"),
    [
        (1, 1, {"transfer_backend": "tcp"}),
        (1, 1, {"checksum": "crc32c"}),
        (2, 1, {}),
        (1, 2, {}),
        (1, 1, HALVED | {"consumed": {"stages": WHOLE}}),
        (1, 2, HALVED | {"consumed": {"stages": THIRDS}}),
    ],
)
@pytest.mark.parametrize("sizes", [(16, 64), (32, 64), (64, 32), (64, 16), (24, 32)])
def test_latents_move_between_blocks_of_unequal_sizes(
    make, producers, consumers, options, sizes, first
):
    options = dict(options)
    consumed = options.pop("consumed", {}) | {"block_size": sizes[1]}
    prefill = make(
        producers, consumers, consumed=consumed, latent=True, block_size=sizes[0], **options
    )
    prefill.come()
    if first == "consumer":
        prefill.receive()
    done = 40 // sizes[0] + 1
    prefill.compute(0, done, 40)
    prefill.compute(done, None, TOKENS)
    prefill.finish()
    if first == "producer":
        prefill.receive()
    prefill.check()


@pytest.mark.parametrize("sizes", [(16, 32), (64, 16), (64, 32)])
def test_of_unequal_blocks_what_the_consumer_has_is_not_sent(make, sizes):
    prefill = make(1, 1, latent=True, block_size=sizes[0], consumed={"block_size": sizes[1]})
    prefill.come()
    prefill.receive(first=1)
    prefill.compute(0, None, TOKENS)
    prefill.finish()
    prefill.check(first=1)


@pytest.mark.expects_log("will be recomputed")
@pytest.mark.parametrize(
    ("said", "text"),
    [
        ([64], "block size: producer '32', expected '64'"),
        ([16], "block size: producer '32', expected '16'"),
        (None, "block size: producer '32', consumer '64'"),
    ],
)
def test_a_request_that_names_another_block_size_gets_nothing(make, caplog, eventually, said, text):
    """With the consumer's own size the check is that of equal engines."""
    prefill = make(1, 1, latent=True, consumed={"block_size": 64})
    prefill.remote = msgspec.structs.replace(prefill.remote, block_sizes=said)
    prefill.come()
    prefill.compute(0, None, TOKENS)
    prefill.receive()
    assert prefill.consumer.all_loaded() == [set(prefill.dst)]
    eventually(lambda: text.replace("expected '64'", "consumer '64'") in caplog.text)
    assert not prefill.consumer.sides[0].kv.any()


@pytest.mark.expects_log("will be recomputed")
@pytest.mark.parametrize(
    ("latent", "size", "text"),
    [
        (True, 32, "the consumer's request is another one"),
        (True, 0, "the consumer's request is another one"),
        (False, 64, "CPU_ATTN vec packs the tokens of a block of 32 in an order of its own"),
    ],
)
def test_a_ticket_with_another_block_size_gets_nothing(
    make, caplog, eventually, monkeypatch, latent, size, text
):
    prefill = make(1, 1, latent=latent, consumed={"block_size": 64 if latent else 32})
    made = PushConsumer._ticket

    def swapped(consumer, wait):
        return msgspec.structs.replace(made(consumer, wait), block_size=size)

    monkeypatch.setattr(PushConsumer, "_ticket", swapped)
    prefill.come()
    prefill.compute(0, None, TOKENS)
    prefill.receive()
    assert prefill.consumer.all_loaded() == [set(prefill.dst)]
    eventually(lambda: text in caplog.text)
    assert not prefill.consumer.sides[0].kv.any()


@pytest.mark.expects_log("will be recomputed")
@pytest.mark.parametrize(
    ("producers", "consumed", "text"),
    [
        (
            1,
            {"block_size": 64},
            "CPU_ATTN vec packs the tokens of a block of 64 in an order of its",
        ),
        (2, {"head_size": 16}, "4 KV heads of 8 DT_FLOAT, 2 planes, CPU_ATTN vec', expected"),
        (2, {"isa": "amx"}, "attention backends: producer 'CPU_ATTN vec', expected 'CPU_ATTN amx'"),
        (2, {"backend": "NEW_ATTN"}, "the layout of the KV cache is not known"),
    ],
)
def test_engines_that_do_not_fit(make, caplog, eventually, producers, consumed, text):
    prefill = make(producers, 1, consumed=consumed)
    prefill.come()
    prefill.receive()
    assert prefill.consumer.all_loaded() == [set(prefill.dst)]
    eventually(lambda: text in caplog.text)
    assert not prefill.consumer.sides[0].kv.any()


@pytest.mark.expects_log("will be recomputed")
def test_swapped_ranks(make, caplog, eventually):
    prefill = make(2, 1)
    prefill.remote = RemotePrefill(transfer=NAME, ranks=prefill.remote.ranks[::-1])
    prefill.come()
    prefill.receive()
    assert prefill.consumer.all_loaded() == [set(prefill.dst)]
    eventually(lambda: "tensor parallel rank: producer '1', expected '0'" in caplog.text)


@pytest.mark.expects_log("will be recomputed")
def test_swapped_stages(make, caplog, eventually):
    prefill = make(1, 1, **HALVES)
    first, second = prefill.remote.ranks
    ranks = [
        RankAddress(one.ip, one.port, one.cluster_id, place.stage, place.layers)
        for one, place in ((second, first), (first, second))
    ]
    prefill.remote = RemotePrefill(transfer=NAME, ranks=ranks)
    prefill.come()
    prefill.receive()
    assert prefill.consumer.all_loaded() == [set(prefill.dst)]
    eventually(lambda: "pipeline parallel rank: producer '1', expected '0'" in caplog.text)
    assert not prefill.consumer.sides[0].kv.any()
