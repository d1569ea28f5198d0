"""The producer of push mode: what it pushes when, its receipts, and when blocks come back."""

import tracemalloc

import pytest

from llm_datadist import LLMStatusCode
from llm_datadist.integrations.vllm.rank_layouts import Indivisible
from llm_datadist.integrations.vllm.stages import Stage
from llm_datadist.integrations.vllm.step_orders import Send, StepProgress
from llm_datadist.integrations.vllm.worker.mailbox import Ticket
from llm_datadist.integrations.vllm.worker.push_producer import PushProducer
from support.vllm.fake_worker import (
    PEER,
    TRACE_HEADERS,
    TRACE_ID,
    FakeWorker,
    packed_layouts,
)

S = LLMStatusCode
MAILBOX, KEY, RECEIPT = 50, 60, 70


def a_ticket(**more):
    fields = {"prompt": "the prompt", "first": 0, "blocks": [31, 32], "num_tokens": 7}
    fields |= {"block_size": 4}
    fields |= {"cluster_id": PEER, "key": KEY, "receipt_key": RECEIPT, "tp_size": 1, "rank": 0}
    return Ticket(**fields | more)


class Side:
    """A producer of one request with two blocks of four tokens, of which eight are the prompt."""

    def __init__(self, rank_layouts=None, **options):
        self.worker = FakeWorker(**options)
        self.worker.rank_layouts = rank_layouts or self.worker.rank_layouts
        self.events, self.what = self.worker.events, self.worker.what
        self.producer = PushProducer(self.worker, self.worker.reports)
        self.producer.send(Send("r", MAILBOX, "the prompt", 8))

    def close(self):
        self.producer.close()

    def counted(self):
        return self.worker.reports.counts.take()

    def compute(self, blocks, num_tokens, *layers):
        self.producer.begin_step([StepProgress("r", blocks, num_tokens)])
        for layer in layers:
            self.producer.layer_saved(layer)
        if not layers:
            self.producer.end_step()

    def deliver(self, slot=0, **more):
        self.worker.deliver(MAILBOX + slot, a_ticket(**more))

    def receipt(self, receipt_key=RECEIPT):
        return [message["problem"] for key, message in self.worker.messages if key == receipt_key]


def test_what_is_computed_is_pushed_and_blocks_come_back_after_the_receipt(make, eventually):
    side = make()
    side.compute([11, 12], 8)
    side.deliver()
    eventually(lambda: len(side.worker.pushes) == 2)
    assert side.worker.pushes == [
        (KEY, 0, [11, 12], [31, 32], range(2), range(2), 1),
        (KEY + 1, 1, [11, 12], [31, 32], range(1), range(1), 1),
    ]
    assert not side.producer.is_waiting
    side.producer.finish("r")
    eventually(lambda: "sent" in side.what())
    assert side.what() == ["pushed", "pushed", "message", "sent"]
    assert side.receipt() == [""]
    assert side.counted() == {"requests_held": {"": 0}, "requests_released": {"pushed": 1}}


def test_a_layer_is_pushed_as_soon_as_it_is_computed_and_no_other(make, eventually):
    side = make()
    side.deliver()
    side.compute([11, 12], 8, "b")
    eventually(lambda: side.worker.pushes)
    assert side.worker.pushes == [(KEY, 0, [11, 12], [31, 32], range(1, 2), range(1, 2), 1)]


def test_blocks_before_the_first_that_is_needed_are_not_pushed(make, eventually):
    side = make()
    side.compute([11, 12], 8)
    side.deliver(first=1, blocks=[32])
    eventually(lambda: len(side.worker.pushes) == 2)
    assert side.worker.pushes[0][2:4] == ([12], [32])


@pytest.mark.parametrize("when", ["before the ticket", "after it"])
def test_a_request_that_is_given_up_says_so_and_pushes_no_more(make, eventually, when):
    side = make()
    if when == "before the ticket":
        side.producer.give_up("r", "preempted")
        side.deliver()
    else:
        side.deliver()
        eventually(lambda: side.producer._dispatcher.jobs["r"].ticket)
        side.producer.give_up("r", "preempted")
    side.compute([11, 12], 8)
    eventually(side.receipt)
    assert side.receipt() == ["preempted"]
    assert side.worker.pushes == []
    eventually(lambda: not side.producer._dispatcher.jobs)
    assert "sent" not in side.what(), "vLLM waits for no blocks of it"


@pytest.mark.expects_log("it cannot be sent")
def test_a_push_that_fails_is_in_the_receipt(make, eventually):
    side = make()
    side.worker.failing = {"push": [None, S.LLM_TIMEOUT]}
    side.compute([11, 12], 8)
    side.deliver()
    side.producer.finish("r")
    eventually(lambda: "sent" in side.what())
    (problem,) = side.receipt()
    assert "could not push it" in problem
    assert side.what() == ["pushed", "message", "sent"]
    assert side.counted()["requests_released"] == {"given_up": 1}


@pytest.mark.parametrize("more", [{"prompt": "another"}, {"num_tokens": 9}, {"blocks": [31, 31]}])
def test_a_ticket_of_another_request_gets_nothing(make, eventually, more):
    side = make()
    side.compute([11, 12], 8)
    side.deliver(**more)
    eventually(side.receipt)
    assert "another one" in side.receipt()[0]
    assert side.worker.pushes == []


@pytest.mark.parametrize("more", [{"cluster_id": -1}, {"receipt_key": -1}])
def test_blocks_come_back_when_the_receipt_can_go_nowhere(make, eventually, more):
    side = make()
    side.compute([11, 12], 8)
    side.deliver(prompt="another", **more)
    side.producer.finish("r")
    eventually(lambda: "sent" in side.what())
    assert side.what() == ["sent"]
    assert not side.producer._dispatcher.jobs


def test_a_consumer_that_needs_nothing_gets_nothing_and_no_receipt(make, eventually):
    side = make()
    side.compute([11, 12], 8)
    side.deliver(blocks=[])
    side.producer.finish("r")
    eventually(lambda: "sent" in side.what())
    assert side.what() == ["sent"]


@pytest.mark.expects_log("no consumer has asked for it within hold_ms 100")
def test_blocks_come_back_when_no_ticket_comes_in_time(make, eventually):
    side = make(hold_ms=100)
    side.compute([11, 12], 8)
    side.producer.finish("r")
    assert side.producer.is_waiting
    eventually(lambda: "sent" in side.what())
    assert side.what() == ["sent"]
    assert side.counted() == {"requests_held": {"": 0}, "requests_released": {"expired": 1}}


def test_blocks_of_a_request_that_is_not_known_come_back_at_once(make):
    side = make()
    side.producer.finish("unknown")
    assert side.events == [("sent", "unknown")]


def test_pushes_have_the_requests_id_and_are_part_of_its_trace(make, eventually):
    side = make()
    side.producer.send(Send("q", MAILBOX, "the prompt", 8, TRACE_HEADERS))
    side.producer.begin_step([StepProgress("q", [11, 12], 8)])
    side.producer.end_step()
    side.deliver()
    eventually(lambda: len(side.worker.pushes) == 2)
    assert side.worker.traces == [("q", TRACE_ID)] * 2


# A consumer with more ranks, or fewer.

SECOND = {"cluster_id": PEER + 1, "key": KEY + 10, "receipt_key": RECEIPT + 1, "rank": 1}


def test_each_worker_of_a_larger_consumer_gets_what_it_asks_for(make, eventually):
    side = make(packed_layouts(kv_heads=2))
    side.compute([11, 12], 8)
    side.deliver(tp_size=2)
    eventually(lambda: len(side.worker.pushes) == 2)
    side.producer.finish("r")
    eventually(side.receipt)
    assert "sent" not in side.what(), "the second worker has nothing yet"
    side.deliver(1, tp_size=2, **SECOND)
    eventually(lambda: "sent" in side.what())
    assert side.worker.pushes == [
        (KEY, 0, [11, 12], [[31, 32]], 8, range(2)),
        (KEY + 1, 1, [11, 12], [[31, 32]], 8, range(1)),
        (KEY + 10, 0, [11, 12], [[31, 32]], 8, range(2)),
        (KEY + 11, 1, [11, 12], [[31, 32]], 8, range(1)),
    ]
    assert side.receipt() == side.receipt(RECEIPT + 1) == [""]
    assert side.what()[-2:] == ["message", "sent"]
    assert not side.producer._by_request


def test_what_is_computed_later_goes_to_all_workers(make, eventually):
    side = make(packed_layouts(kv_heads=2))
    side.deliver(tp_size=2)
    eventually(lambda: len(side.producer._dispatcher.jobs) == 2)
    side.deliver(1, tp_size=2, **SECOND)
    side.compute([11, 12], 8, "b")
    eventually(lambda: len(side.worker.pushes) == 2)
    assert sorted(side.worker.pushes) == [
        (key, 0, [11, 12], [[31, 32]], 8, range(1, 2)) for key in (KEY, KEY + 10)
    ]


@pytest.mark.parametrize("rank", [0, 1])
def test_of_ranks_with_the_same_heads_one_pushes(make, eventually, rank):
    side = make(packed_layouts(kv_heads=1, tp_size=2, rank=rank))
    side.compute([11, 12], 8)
    side.deliver(tp_size=1)
    side.producer.finish("r")
    eventually(lambda: "sent" in side.what())
    assert len(side.worker.pushes) == (0 if rank else 2)
    assert side.receipt() == [""]


@pytest.mark.parametrize("layers", [(0, 8), None])
def test_a_consumer_with_other_layers_gets_layers_of_the_model(make, eventually, layers):
    side = make(packed_layouts(stage=Stage(1, 2, range(4, 6))))
    side.compute([11, 12], 8)
    side.deliver(layers=layers, stages=(layers,), stage=0 if layers else 1)
    eventually(lambda: len(side.worker.pushes) == 2)
    assert side.worker.pushes[0] == (KEY, 0, [11, 12], [[31, 32]], 8, range(4, 6))


def test_a_consumer_with_other_layers_and_what_is_not_known(make, eventually):
    side = make()
    side.compute([11, 12], 8)
    side.deliver(layers=(0, 8))
    eventually(side.receipt)
    assert side.receipt() == ["the consumer does not fit: what blocks hold is not known"]
    assert side.worker.pushes == []


def test_a_prompt_that_is_given_up_is_given_up_for_all_workers(make, eventually):
    side = make(packed_layouts(kv_heads=2))
    side.deliver(tp_size=2)
    eventually(lambda: len(side.producer._dispatcher.jobs) == 2)
    side.producer.give_up("r", "preempted")
    eventually(side.receipt)
    side.deliver(1, tp_size=2, **SECOND)
    eventually(lambda: side.receipt(RECEIPT + 1))
    assert side.receipt() == side.receipt(RECEIPT + 1) == ["preempted"]


@pytest.mark.parametrize(
    "more",
    [
        {"tp_size": 2, "rank": 1},
        {"tp_size": 0},
        {"tp_size": 1, "rank": 1},
        {"tp_size": 1024, "rank": 0},
        {"stage": 1},
        {"stage": 1, "stages": (None, None)},
    ],
)
def test_a_worker_that_loads_from_another_rank_gets_nothing(make, eventually, more):
    side = make(packed_layouts(kv_heads=2))
    side.compute([11, 12], 8)
    side.deliver(**more)
    eventually(side.receipt)
    assert "the consumer does not fit" in side.receipt()[0]
    assert side.worker.pushes == []


def test_a_ticket_of_too_many_workers_is_refused_before_they_are_listed(make):
    side = make(packed_layouts(stage=Stage(0, 1, range(4, 6))))
    ticket = a_ticket(tp_size=4096, stages=((4, 6),) * 100)
    tracemalloc.start()
    try:
        with pytest.raises(Indivisible, match="409600 of its workers load from this one, at most"):
            side.producer._readers_of(ticket)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_request_that_is_kept_when_the_worker_closes_comes_back(make, is_finished):
    """One whose blocks vLLM has not left to the connector is not reported."""
    side = make()
    side.compute([11, 12], 8)
    if is_finished:
        side.producer.finish("r")
    side.close()
    assert side.events == [("sent", "r")] * is_finished
    closed = {"requests_held": {"": 0}, "requests_released": {"closed": 1}}
    assert side.counted() == (closed if is_finished else {})
