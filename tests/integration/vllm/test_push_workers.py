"""Workers of the vLLM connector in push mode."""

from __future__ import annotations

import time

import pytest

from llm_datadist.integrations.vllm.kv_transfer_params import RemotePrefill
from llm_datadist.integrations.vllm.step_orders import Receive, Send, StepOrders, StepProgress
from support.vllm.worker_sides import BLOCKS, LAYERS

MODE = "push"
NAME = "a random name of a transfer"
SRC, DST = [3, 7, 5], [0, 9, 4]
TOKENS = 80  # two blocks and a half


def prefill_by(producer, name=NAME):
    return RemotePrefill(transfer=name, ranks=[producer.worker.address])


def come(producer, request_id="p", name=NAME, prompt="d"):
    """A request comes to be prefilled."""
    send = Send(request_id, prefill_by(producer, name).mailbox_key, prompt, TOKENS)
    producer.worker.carry_out(StepOrders(send=[send]), is_idle=False)


def compute(producer, blocks, num_tokens, request_id="p", layers=range(LAYERS)):
    """A step of the model."""
    progress = StepOrders(progress=[StepProgress(request_id, list(blocks), num_tokens)])
    producer.worker.carry_out(progress, is_idle=False)
    for layer in layers:
        producer.worker.layer_saved(f"layer{layer}")
    if len(layers) == LAYERS:
        producer.worker.step_saved()


def prefill(producer, request_id="p", blocks=SRC):
    """All steps, in chunks that end within a block."""
    compute(producer, blocks[:2], 40, request_id)
    compute(producer, blocks[2:], TOKENS, request_id)
    producer.worker.carry_out(StepOrders(finish=[request_id]), is_idle=False)


def await_of(producer, request_id="d", first=0, blocks=DST, num_tokens=TOKENS - 1, **more):
    order = {"name": NAME, "prompt": "d", **more}
    prefill = prefill_by(producer, order["name"])
    awaited = Receive(request_id, prefill, order["prompt"], first, list(blocks), num_tokens)
    return StepOrders(receive=[awaited])


def wait_filled(consumer, layer, blocks):
    """Wait until a layer of these blocks, which are zeros at first, has arrived as a whole."""
    deadline = time.monotonic() + 10
    while not consumer.kv[layer, blocks].all():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    "pair", [{}, {"transfer_backend": "tcp"}, {"checksum": "crc32c"}], indirect=True
)
@pytest.mark.parametrize("first", ["producer", "consumer", "consumer's ticket"])
def test_blocks_arrive_whoever_comes_first(pair, first):
    producer, consumer = pair
    orders = await_of(producer)
    if first == "producer":
        come(producer)
        prefill(producer)
    elif first == "consumer":
        consumer.worker.carry_out(orders, is_idle=False)
        time.sleep(0.1)
        orders = StepOrders()
        come(producer)
        prefill(producer)
    else:
        come(producer)
        consumer.worker.carry_out(orders, is_idle=False)
        time.sleep(0.1)
        orders = StepOrders()
        prefill(producer)
    assert consumer.until(loaded=["d"], orders=orders) == (set(), set())
    producer.until(sent=["p"], within_s=2)
    assert (consumer.kv[:, DST] == producer.kv[:, SRC]).all()
    rest = [block for block in range(BLOCKS) if block not in DST]
    assert not consumer.kv[:, rest].any()


def test_layers_arrive_while_the_step_goes_on(pair):
    """The first layer's blocks are there before the second layer is computed."""
    producer, consumer = pair
    come(producer)
    consumer.worker.carry_out(await_of(producer), is_idle=False)
    compute(producer, SRC[:2], 64, layers=[0])
    wait_filled(consumer, 0, DST[:2])
    assert (consumer.kv[0, DST[:2]] == producer.kv[0, SRC[:2]]).all()
    assert not consumer.kv[1:].any()
    assert consumer.worker.take_ended() == (set(), set())
    for layer in (1, 2):
        producer.worker.layer_saved(f"layer{layer}")
    producer.worker.step_saved()
    compute(producer, SRC[2:], TOKENS)
    producer.worker.carry_out(StepOrders(finish=["p"]), is_idle=False)
    assert consumer.until(loaded=["d"]) == (set(), set())
    assert (consumer.kv[:, DST] == producer.kv[:, SRC]).all()


def test_what_the_consumer_has_is_not_sent(pair):
    producer, consumer = pair
    come(producer)
    orders = await_of(producer, first=1, blocks=DST[1:])
    consumer.worker.carry_out(orders, is_idle=False)
    prefill(producer)
    assert consumer.until(loaded=["d"]) == (set(), set())
    assert (consumer.kv[:, DST[1:]] == producer.kv[:, SRC[1:]]).all()
    assert not consumer.kv[:, DST[0]].any()


def test_a_consumer_that_has_all_lets_the_producer_go(pair):
    producer, consumer = pair
    come(producer)
    consumer.worker.carry_out(await_of(producer, blocks=[], num_tokens=64), is_idle=False)
    prefill(producer)
    producer.until(sent=["p"], within_s=3)
    assert consumer.worker.take_ended() == (set(), set())
    assert not consumer.kv.any()


def test_many_requests_at_once(pair):
    producer, consumer = pair
    numbers = range(8)
    orders = StepOrders()
    for i in numbers:
        come(producer, f"p{i}", f"{NAME} {i}")
        blocks = [23 - 3 * i, 22 - 3 * i, 21 - 3 * i]
        orders.receive += await_of(producer, f"d{i}", blocks=blocks, name=f"{NAME} {i}").receive
    consumer.worker.carry_out(orders, is_idle=False)
    for i in numbers:
        prefill(producer, f"p{i}", [3 * i, 3 * i + 1, 3 * i + 2])
    assert consumer.until(loaded=[f"d{i}" for i in numbers]) == (set(), set())
    producer.until(sent=[f"p{i}" for i in numbers])
    assert (consumer.kv[:, ::-1] == producer.kv).all()


@pytest.mark.expects_log("will be recomputed: the producer's request was aborted")
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_request_that_is_given_up_is_computed_by_the_consumer(pair, when):
    producer, consumer = pair
    come(producer)
    orders = await_of(producer)
    if when == "after":
        consumer.worker.carry_out(orders, is_idle=False)
        orders = StepOrders()
    compute(producer, SRC[:2], 64)
    gone = StepOrders(give_up={"p": "the producer's request was aborted"})
    producer.worker.carry_out(gone, is_idle=False)
    assert consumer.until(loaded=["d"], orders=orders) == (set(DST), set())
    assert producer.worker.take_ended() == (set(), set())


@pytest.mark.parametrize("pair", [{"hold_ms": 300}], indirect=True)
@pytest.mark.expects_log("no consumer has asked", "hold_ms 300 is over")
def test_whoever_is_left_alone_goes_on_after_the_hold_time(pair):
    producer, consumer = pair
    come(producer)
    prefill(producer)
    producer.until(sent=["p"], within_s=5)
    assert consumer.until(loaded=["d"], orders=await_of(producer)) == (set(DST), set())


@pytest.mark.expects_log("the consumer's request is another one")
@pytest.mark.parametrize(
    "wrong", [{"prompt": "e"}, {"num_tokens": 200}, {"blocks": [1]}, {"blocks": [1, 1, 2]}]
)
def test_a_ticket_that_does_not_fit_is_refused(pair, wrong):
    producer, consumer = pair
    come(producer)
    orders = await_of(producer, **wrong)
    consumer.worker.carry_out(orders, is_idle=False)
    prefill(producer)
    failed, _ = consumer.until(loaded=["d"])
    assert failed == set(orders.receive[0].blocks)
    producer.until(sent=["p"], within_s=3)


@pytest.mark.expects_log("aborted", "cannot be sent")
def test_nothing_lands_after_the_consumer_has_given_up(pair):
    """vLLM has the blocks again when the wait is reported: pushes of later layers are refused."""
    producer, consumer = pair
    come(producer)
    consumer.worker.carry_out(await_of(producer), is_idle=False)
    compute(producer, SRC[:2], 64, layers=[0])
    wait_filled(consumer, 0, DST[0])
    failed, _ = consumer.until(loaded=["d"], orders=StepOrders(abandon=["d"]))
    assert failed == set(DST)
    consumer.kv[:] = 7
    prefill(producer, blocks=[*SRC[:2], *SRC[2:]])
    producer.until(sent=["p"], within_s=5)
    assert (consumer.kv == 7).all()


@pytest.mark.expects_log(".*")
def test_a_producer_that_leaves_is_noticed(sides, pair):
    producer, consumer = pair
    come(producer)
    consumer.worker.carry_out(await_of(producer), is_idle=False)
    compute(producer, SRC[:2], 64, layers=[0])
    wait_filled(consumer, 0, DST[0])
    producer.worker.close()
    failed, _ = consumer.until(loaded=["d"], within_s=3)
    assert failed == set(DST)


@pytest.mark.expects_log(".*")
def test_a_consumer_that_leaves_is_noticed(pair):
    producer, consumer = pair
    come(producer)
    consumer.worker.carry_out(await_of(producer), is_idle=False)
    compute(producer, SRC[:2], 64, layers=[0])
    wait_filled(consumer, 0, DST[0])
    consumer.worker.close()
    compute(producer, SRC[2:], TOKENS)
    producer.worker.carry_out(StepOrders(finish=["p"]), is_idle=False)
    producer.until(sent=["p"], within_s=3)
