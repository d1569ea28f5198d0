"""The producer of push mode: what it pushes when, its receipts, and when blocks come back."""

import pytest

from llm_datadist import LLMStatusCode
from llm_datadist.integrations.vllm.step_orders import Send, StepProgress
from llm_datadist.integrations.vllm.worker.mailbox import Ticket
from llm_datadist.integrations.vllm.worker.push_producer import PushProducer
from support.vllm.fake_worker import PEER, FakeWorker

S = LLMStatusCode
MAILBOX, KEY, RECEIPT = 50, 60, 70


def a_ticket(**more):
    fields = {"prompt": "the prompt", "first": 0, "blocks": [31, 32], "num_tokens": 7}
    return Ticket(cluster_id=PEER, key=KEY, receipt_key=RECEIPT, **fields | more)


class Side:
    """A producer of one request with two blocks of four tokens, of which eight are the prompt."""

    def __init__(self, **options):
        self.worker = FakeWorker(**options)
        self.events, self.what = self.worker.events, self.worker.what
        self.producer = PushProducer(self.worker, self.worker.reports)
        self.producer.send(Send("r", MAILBOX, "the prompt", 8))

    def close(self):
        self.producer.close()

    def compute(self, blocks, num_tokens, *layers):
        self.producer.begin_step([StepProgress("r", blocks, num_tokens)])
        for layer in layers:
            self.producer.layer_saved(layer)
        if not layers:
            self.producer.end_step()

    def deliver(self, **more):
        self.worker.deliver(MAILBOX, a_ticket(**more))

    def receipt(self):
        return [message["problem"] for key, message in self.worker.messages if key == RECEIPT]


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


@pytest.mark.parametrize("more", [{"prompt": "another"}, {"num_tokens": 9}, {"blocks": [31, 31]}])
def test_a_ticket_of_another_request_gets_nothing(make, eventually, more):
    side = make()
    side.compute([11, 12], 8)
    side.deliver(**more)
    eventually(side.receipt)
    assert "another one" in side.receipt()[0]
    assert side.worker.pushes == []


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


def test_blocks_of_a_request_that_is_not_known_come_back_at_once(make):
    side = make()
    side.producer.finish("unknown")
    assert side.events == [("sent", "unknown")]
