"""The consumer of push mode: when a request is reported, and what it reports."""

import dataclasses

import msgspec
import pytest

from llm_datadist import LLMStatusCode
from llm_datadist.integrations.vllm.kv_transfer_params import (
    RankAddress,
    RemotePrefill,
    mailbox_key_of_slot,
)
from llm_datadist.integrations.vllm.stages import Stage
from llm_datadist.integrations.vllm.step_orders import Receive
from llm_datadist.integrations.vllm.worker import push_consumer
from llm_datadist.integrations.vllm.worker.mailbox import Receipt
from llm_datadist.integrations.vllm.worker.push_consumer import PushConsumer
from support.vllm.fake_worker import PEER, ConsumerSide, packed_layouts

S = LLMStatusCode
PREFILL = RemotePrefill(transfer="a random name of it", ranks=[RankAddress("a", 1, PEER)])
BLOCKS = [5, 6]


def an_order(blocks=BLOCKS):
    return Receive("r", PREFILL, "the prompt", 0, list(blocks), 8)


class Side(ConsumerSide):
    role = PushConsumer

    def answer(self, problem="", prompt="the prompt"):
        """Let the producer send its receipt for the ticket."""
        _, ticket = self.worker.messages[-1]
        self.worker.deliver(ticket["receipt_key"], Receipt(prompt=prompt, problem=problem))

    def reported(self):
        return [event for event in self.events if event[0] == "loaded"]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(push_consumer, "_RETRY_S", 0.001)
    monkeypatch.setattr(push_consumer, "_LINK_CHECK_S", 0.001)


def test_a_request_is_reported_after_its_key_is_withdrawn(make, eventually):
    """Only then can nothing that the producer pushes land in blocks that vLLM uses."""
    side = make()
    side.consumer.receive(an_order())
    eventually(lambda: side.worker.messages)
    assert side.consumer.is_waiting
    key, ticket = side.worker.messages[0]
    assert key == PREFILL.mailbox_key
    assert (ticket["blocks"], ticket["prompt"]) == (BLOCKS, "the prompt")
    assert side.what() == ["linked", "published", "message"]
    assert side.events[1] == ("published", ticket["key"])
    side.answer()
    eventually(side.reported)
    assert side.events[3:] == [("withdrawn", ticket["key"]), ("loaded", "r", set())]
    counted = side.worker.reports.counts.take()
    assert len(counted.pop("fetch_seconds")["path7"]) == 1
    assert counted == {
        "requests_fetched": {"path7": 1},
        "fetched_bytes": {"path7": 2 * (2 * 64 + 32)},
    }
    eventually(lambda: not side.consumer.is_waiting)


@pytest.mark.expects_log("key is not withdrawn yet")
def test_a_request_is_not_reported_while_its_key_cannot_be_withdrawn(make, eventually):
    side = make({"withdraw": [RuntimeError("not now"), RuntimeError("nor now")]})
    side.consumer.receive(an_order())
    eventually(lambda: side.worker.messages)
    side.answer()
    eventually(side.reported)
    assert side.what()[3:] == ["withdrawn", "loaded"]
    assert not side.worker.failing["withdraw"]


@pytest.mark.expects_log("2 of its blocks were not received")
@pytest.mark.parametrize(
    "receipt", [{"problem": "it was given up"}, {"prompt": "another"}], ids=["problem", "prompt"]
)
def test_no_block_counts_unless_the_receipt_says_so(make, eventually, receipt):
    side = make()
    side.consumer.receive(an_order())
    eventually(lambda: side.worker.messages)
    side.answer(**receipt)
    eventually(side.reported)
    assert side.what()[-2:] == ["withdrawn", "loaded"]
    assert side.reported() == [("loaded", "r", set(BLOCKS))]
    assert side.worker.reports.counts.take() == {"requests_recomputed": {"not_sent": 1}}


@pytest.mark.expects_log("2 of its blocks were not received")
@pytest.mark.parametrize(
    ("end", "counted"),
    [
        ("aborted", {}),
        ("out of time", {"requests_recomputed": {"timeout": 1}}),
        ("link lost", {"requests_recomputed": {"link_lost": 1}}),
    ],
)
def test_a_wait_that_ends_without_a_receipt(make, eventually, end, counted):
    side = make(hold_ms=100 if end == "out of time" else 60_000)
    side.consumer.receive(an_order())
    eventually(lambda: side.worker.messages)
    if end == "aborted":
        side.consumer.abandon("r")
    elif end == "link lost":
        side.worker.failing["describe_link"] = [S.LLM_NOT_YET_LINK]
    eventually(side.reported)
    assert [each for each in side.what() if each != "dropped"][-2:] == ["withdrawn", "loaded"]
    assert side.reported() == [("loaded", "r", set(BLOCKS))]
    assert side.worker.reports.counts.take() == counted


def test_a_producer_that_does_not_know_the_request_yet_is_asked_again(make, eventually):
    side = make({"message": [S.LLM_KV_CACHE_NOT_EXIST, S.LLM_LINK_FAILED, None]})
    side.consumer.receive(an_order())
    eventually(lambda: side.worker.messages)
    assert side.what() == ["linked", "published", "linked", "dropped", "linked", "message"]


@pytest.mark.expects_log("2 of its blocks were not received")
@pytest.mark.parametrize("status", [S.LLM_TIMEOUT, S.LLM_PARAM_INVALID])
def test_a_ticket_that_cannot_be_sent_ends_the_wait(make, eventually, status):
    side = make({"message": [status]})
    side.consumer.receive(an_order())
    eventually(side.reported)
    assert ("silent" in side.what()) is (status is S.LLM_TIMEOUT)
    assert side.what()[-2:] == ["withdrawn", "loaded"]
    assert side.worker.reports.counts.take()["fetch_errors"] == {f"path7/{status.name}": 1}


def test_a_producer_whose_blocks_are_not_needed_is_told_and_nothing_is_reported(make, eventually):
    side = make()
    side.consumer.receive(an_order(blocks=[]))
    eventually(lambda: side.worker.messages and not side.consumer._dispatcher.jobs)
    assert side.what() == ["linked", "message"]
    assert side.worker.messages[0][1]["blocks"] == []
    assert not side.consumer.is_waiting


# A producer with more ranks, or fewer.

OTHER = PEER + 1


class Unequal(Side):
    """A worker alone, whose producer has two."""

    def __init__(self, failing=(), **options):
        super().__init__(failing, **options)
        self.worker.rank_layouts = packed_layouts()
        self.consumer.receive(dataclasses.replace(an_order(), prefill=TWO_RANKS))

    def answer(self, number, problem=""):
        _, ticket = self.worker.messages[number]
        self.worker.deliver(ticket["receipt_key"], Receipt(prompt="the prompt", problem=problem))


TWO_RANKS = RemotePrefill(
    transfer=PREFILL.transfer, ranks=[*PREFILL.ranks, RankAddress("b", 1, OTHER)]
)


@pytest.fixture
def unequal():
    made = []

    def make(*arguments, **options):
        made.append(Unequal(*arguments, **options))
        return made[-1]

    yield make
    for side in made:
        side.close()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_request_is_reported_when_all_receipts_have_arrived(unequal, eventually, order):
    side = unequal()
    eventually(lambda: len(side.worker.messages) == 2)
    (_, first), (_, second) = side.worker.messages
    assert first["key"] == second["key"], "both push into the same blocks"
    assert first["receipt_key"] != second["receipt_key"]
    assert side.what() == ["linked", "published", "message", "linked", "message"]
    side.answer(order[0])
    eventually(lambda: side.consumer._dispatcher.jobs["r"].receipts)
    assert not side.reported()
    side.answer(order[1])
    eventually(side.reported)
    assert side.events[-2:] == [("withdrawn", first["key"]), ("loaded", "r", set())]


@pytest.mark.expects_log("2 of its blocks were not received")
def test_a_problem_of_one_rank_ends_the_wait(unequal, eventually):
    side = unequal()
    eventually(lambda: len(side.worker.messages) == 2)
    side.answer(1, "it was given up")
    eventually(side.reported)
    assert side.reported() == [("loaded", "r", set(BLOCKS))]


@pytest.mark.expects_log("2 of its blocks were not received")
def test_a_link_that_is_lost_to_one_rank_ends_the_wait(unequal, eventually):
    side = unequal()
    eventually(lambda: len(side.worker.messages) == 2)
    side.worker.failing["describe_link"] = [None, S.LLM_NOT_YET_LINK]
    eventually(side.reported)
    assert ("dropped", OTHER) in side.events or ("dropped", PEER) in side.events


def test_a_rank_that_does_not_know_the_request_yet_is_asked_again_alone(unequal, eventually):
    side = unequal({"message": [None, S.LLM_KV_CACHE_NOT_EXIST]})
    eventually(lambda: len(side.worker.messages) == 2)
    assert side.what() == ["linked", "published", "message", "linked", "linked", "message"]


def test_workers_that_load_from_the_same_rank_have_mailboxes_of_their_own(make, eventually):
    sides = [make(), make()]
    for rank, side in enumerate(sides):
        side.worker.rank_layouts = packed_layouts(tp_size=2, rank=rank)
        side.consumer.receive(an_order())
    eventually(lambda: all(side.worker.messages for side in sides))
    (first, ticket), (second, other) = (side.worker.messages[0] for side in sides)
    assert [(each["tp_size"], each["rank"]) for each in (ticket, other)] == [(2, 0), (2, 1)]
    assert first == PREFILL.mailbox_key
    assert second == mailbox_key_of_slot(first, 1)


def test_stages_that_load_from_the_same_rank_have_mailboxes_of_their_own(make, eventually):
    ranks = [RankAddress("a", 1, PEER, 0, (0, 4))]
    spans = ((0, 2), (2, 4))
    order = dataclasses.replace(
        an_order(), prefill=msgspec.structs.replace(PREFILL, ranks=ranks), stages=spans
    )
    sides = [make(), make()]
    for index, side in enumerate(sides):
        stage = Stage(index, 2, range(*spans[index]))
        side.worker.rank_layouts = packed_layouts(stage=stage)
        side.worker.facts = {"layers": "0 to 1"}
        side.consumer.receive(order)
    eventually(lambda: all(side.worker.messages for side in sides))
    (first, ticket), (second, other) = (side.worker.messages[0] for side in sides)
    assert [each["layers"] for each in (ticket, other)] == [[0, 2], [2, 4]]
    assert [each["stage"] for each in (ticket, other)] == [0, 1]
    assert (first, second) == (PREFILL.mailbox_key, mailbox_key_of_slot(first, 1))


@pytest.mark.expects_log("2 of its blocks were not received and will be recomputed: the producer")
def test_what_is_not_known_is_not_divided(make, eventually):
    side = make()
    side.consumer.receive(dataclasses.replace(an_order(), prefill=TWO_RANKS))
    eventually(side.reported)
    assert side.what() == ["loaded"]


def test_a_request_that_waits_when_the_worker_closes_is_reported_as_failed(make, eventually):
    side = make()
    side.consumer.receive(an_order())
    eventually(lambda: side.worker.messages)
    side.close()
    assert side.reported() == [("loaded", "r", set(BLOCKS))]
    side.close()
    assert len(side.reported()) == 1
    assert side.worker.reports.counts.take() == {"requests_recomputed": {"closed": 1}}
