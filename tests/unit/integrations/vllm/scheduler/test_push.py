"""The scheduler's side of push mode: what is sent, awaited, given up, and how far it is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from llm_datadist.integrations.vllm.kv_transfer_params import (
    RankAddress,
    RemotePrefill,
    prompt_digest,
)
from llm_datadist.integrations.vllm.scheduler.push import PushScheduler
from llm_datadist.integrations.vllm.step_orders import Receive, Send, StepOrders, StepProgress
from support.vllm.objects import request

RANK = RankAddress("192.0.2.7", 7000, 1)
NAME = "a random name of a transfer"
PREFILL = RemotePrefill(transfer=NAME, ranks=[RANK])
SEND = {"do_remote_decode": True, "transfer": NAME}
AWAIT = {
    "do_remote_prefill": True,
    "transfer": NAME,
    "ranks": [{"ip": "a", "port": 1, "cluster_id": 2}],
}


class Side:
    """A scheduler in push mode and its orders."""

    def __init__(self, *, num_ranks=1, is_producer=True, is_consumer=True):
        roles = {"is_producer": is_producer, "is_consumer": is_consumer}
        self._orders = StepOrders()
        self.pushes = PushScheduler(self._orders, 32, num_ranks, **roles)
        self.pushes.ranks = [RANK]

    def arrived(self, *args, **kwargs):
        one = request(*args, **kwargs)
        self.pushes.arrived(one)
        return one

    def orders(self):
        return self._orders.take()

    def step(self, *, new=(), cached=(), preempted=(), resumed=()):
        """Schedule (request id, block ids, computed tokens, scheduled tokens)."""
        output = SimpleNamespace(
            preempted_req_ids=set(preempted),
            num_scheduled_tokens={each[0]: each[3] for each in [*new, *cached]},
            scheduled_new_reqs=[
                SimpleNamespace(req_id=name, block_ids=(blocks,), num_computed_tokens=computed)
                for name, blocks, computed, _ in new
            ],
            scheduled_cached_reqs=SimpleNamespace(
                req_ids=[each[0] for each in cached],
                new_block_ids=[None if each[1] is None else (each[1],) for each in cached],
                num_computed_tokens=[each[2] for each in cached],
                resumed_req_ids=set(resumed),
            ),
        )
        self.pushes.scheduled(output)
        return self.orders()


def test_a_prefill_is_followed_step_by_step():
    side = Side()
    one = side.arrived("p", range(100), SEND)
    assert side.orders().send == [Send("p", PREFILL.mailbox_key, prompt_digest(one), 100)]
    assert side.step(new=[("p", [5, 6], 32, 32)]).progress == [StepProgress("p", [5, 6], 64)]
    assert side.step(cached=[("p", None, 64, 8)]).progress == [StepProgress("p", [], 72)]
    assert side.step(cached=[("p", [9, 7], 72, 29)]).progress == [StepProgress("p", [9, 7], 100)]
    is_kept, params = side.pushes.finished(one, ())
    assert is_kept
    assert params["ranks"] == [{"ip": "192.0.2.7", "port": 7000, "cluster_id": 1}]
    assert (params["transfer"], params["block_sizes"]) == (NAME, [32])
    assert side.orders().finish == ["p"]
    assert side.step(cached=[("p", [8], 100, 1)]).progress == []


def test_a_push_has_the_trace_of_its_request():
    side, headers = Side(), {"traceparent": "00-1-2-01"}
    side.arrived("p", range(100), SEND, trace_headers=headers)
    (send,) = side.orders().send
    assert send.trace_headers == headers


@pytest.mark.parametrize("how", ["preempted", "resumed"])
def test_a_preempted_prefill_is_given_up(how):
    side = Side()
    one = side.arrived("p", range(100), SEND)
    side.step(new=[("p", [5, 6], 0, 64)])
    cached = [("p", [1, 2, 3], 0, 96)] if how == "resumed" else []
    orders = side.step(cached=cached, **{how: ["p"]})
    assert list(orders.give_up) == ["p"]
    assert orders.progress == []
    assert side.pushes.finished(one, ()) == (False, None)
    assert side.orders().finish == []


@pytest.mark.parametrize(
    "more",
    [{"status": SimpleNamespace(name="FINISHED_ABORTED")}, {"num_computed_tokens": 99}],
)
def test_a_prefill_that_did_not_end_well_is_given_up(more):
    side = Side()
    one = side.arrived("p", range(100), SEND, **more)
    assert side.pushes.finished(one, ()) == (False, None)
    assert list(side.orders().give_up) == ["p"]


def test_blocks_are_awaited_from_the_first_that_is_missing():
    side = Side()
    one = side.arrived("d", range(100), AWAIT)
    assert side.pushes.num_new_matched_tokens(one, 32) == 67
    side.pushes.allocated(one, ([3, 4, 5, 6],), 67)
    (order,) = side.orders().receive
    prefill = RemotePrefill(transfer=NAME, ranks=[RankAddress("a", 1, 2)])
    assert order == Receive("d", prefill, prompt_digest(one), 1, [4, 5, 6], 99)


def test_the_last_token_is_computed():
    """Its block is not awaited when it is alone in it."""
    side = Side()
    one = side.arrived("d", range(97), AWAIT)
    assert side.pushes.num_new_matched_tokens(one, 0) == 96
    side.pushes.allocated(one, ([3, 4, 5, 6],), 96)
    assert side.orders().receive[0].blocks == [3, 4, 5]


@pytest.mark.parametrize("how", ["has all", "aborted"])
def test_a_producer_whose_blocks_are_not_needed_learns_it(how):
    side = Side()
    one = side.arrived("d", range(97), AWAIT)
    if how == "has all":
        assert side.pushes.num_new_matched_tokens(one, 96) == 0
        side.pushes.allocated(one, ([3, 4, 5, 6],), 0)
    else:
        side.pushes.num_new_matched_tokens(one, 0)
        assert side.pushes.finished(one, ()) == (False, None)
    (order,) = side.orders().receive
    assert (order.prefill.transfer, order.blocks) == (NAME, [])


@pytest.mark.parametrize("is_loaded", [False, True])
def test_an_abort_ends_a_wait_that_has_not_ended(is_loaded):
    side = Side()
    one = side.arrived("d", range(100), AWAIT)
    side.pushes.num_new_matched_tokens(one, 0)
    side.pushes.allocated(one, ([3, 4, 5, 6],), 99)
    if is_loaded:
        side.pushes.loaded({"d"})
    side.pushes.finished(one, ())
    assert side.orders().abandon == ([] if is_loaded else ["d"])


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({**SEND, "transfer": "short"}, "write a random text of 16 to 256 characters"),
        ({**SEND, "transfer": 7}, "write a random text"),
        ({**AWAIT, "ranks": []}, 'has 0 "ranks"'),
        ({**AWAIT, "ranks": [1]}, "malformed"),
        ({**AWAIT, "ranks": AWAIT["ranks"] * 3}, "tensor parallel size 3, this engine 2"),
        ({**AWAIT, "block_sizes": [32, 32]}, "the producer has 2 KV cache groups, this engine 1"),
        ({**AWAIT, "block_sizes": []}, "the producer has 0 KV cache groups"),
        ({**AWAIT, "block_sizes": [0]}, '"block_sizes" out of range'),
        ({**AWAIT, "block_sizes": [1 << 21]}, '"block_sizes" out of range'),
        ({**AWAIT, "block_sizes": ["32"]}, "malformed"),
    ],
)
@pytest.mark.expects_log("it is not transferred")
def test_what_cannot_be_transferred_is_computed(params, text, caplog):
    side = Side(num_ranks=2)
    one = side.arrived("r", range(100), params)
    assert text in caplog.text
    assert side.pushes.num_new_matched_tokens(one, 0) == 0
    side.pushes.allocated(one, ([3, 4, 5, 6],), 0)
    assert side.pushes.finished(one, ()) == (False, None)
    orders = side.orders()
    assert (orders.send, orders.receive, orders.finish) == ([], [], [])
    recomputed = {"requests_recomputed": {"offer": 1}} if "ranks" in params else {}
    assert side.pushes.counts.take() == recomputed


@pytest.mark.expects_log("this engine is a producer only")
def test_roles():
    one = Side(is_consumer=False).arrived("d", range(100), AWAIT)
    assert Side().pushes.num_new_matched_tokens(one, 0) == 0
    consumer = Side(is_producer=False)
    consumer.arrived("p", range(100), SEND)
    assert consumer.orders().send == []


@pytest.mark.parametrize("more", [{"tokens": range(1)}, {"prompt_embeds": object()}])
def test_prompts_that_cannot_be_sent_are_not(more):
    side = Side()
    one = side.arrived("p", **{"tokens": range(100), "params": SEND, **more})
    assert side.orders().send == []
    assert side.pushes.finished(one, ()) == (False, None)
