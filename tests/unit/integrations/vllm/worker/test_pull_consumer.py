"""The consumer of pull mode: leases, pulls, reports, and what counts as loaded."""

import dataclasses
import threading

import msgspec
import pytest

from llm_datadist import LLMException, LLMStatusCode
from llm_datadist.integrations.vllm.kv_transfer_params import Offer, RankAddress
from llm_datadist.integrations.vllm.step_orders import Load
from llm_datadist.integrations.vllm.worker import pull_progress
from llm_datadist.integrations.vllm.worker.producer_links import Incompatible, Late, Unreachable
from llm_datadist.integrations.vllm.worker.pull_consumer import PullConsumer
from support.vllm.fake_worker import (
    PEER,
    TRACE_HEADERS,
    TRACE_ID,
    ConsumerSide,
    packed_layouts,
)

S = LLMStatusCode
KEY = 60
OFFER = Offer(
    key=KEY,
    ranks=[RankAddress("a", 1, PEER)],
    blocks=[[21, 22]],
    block_sizes=[4],
    num_tokens=8,
    prompt="d",
    remote_request_id="p",
    remote_engine_id="e",
)
ORDER = Load("r", OFFER, [[21, 22]], [[1, 2]], [9])


class Side(ConsumerSide):
    role = PullConsumer

    def load(self):
        self.consumer.load(ORDER)

    def failed(self):
        return [blocks for kind, *_, blocks in self.events if kind == "loaded"]


def test_a_request_is_pulled_under_a_lease_and_reported_before_its_release(make, eventually):
    """vLLM need not wait for the release."""
    side = make()
    side.load()
    eventually(lambda: "released" in side.what())
    assert side.what() == [
        "linked",
        "leased",
        "pulled",
        "renewed",
        "pulled",
        "loaded",
        "released",
    ]
    assert side.worker.pulls == [
        (KEY, 0, [21, 22], [1, 2]),
        (KEY + 1, 1, [21, 22], [1, 2]),
    ]
    assert side.failed() == [{9}], "the offer had nothing for it"
    assert not side.consumer.is_waiting


@pytest.mark.expects_log("2 of its blocks cannot be fetched")
@pytest.mark.parametrize(
    "failing",
    [{"pull": [None, S.LLM_KV_CACHE_NOT_EXIST]}, {"lease": [S.LLM_KV_CACHE_NOT_EXIST]}],
    ids=["pull", "lease"],
)
def test_what_is_not_pulled_is_reported_as_failed(make, eventually, failing):
    side = make(failing)
    side.load()
    eventually(side.failed)
    assert side.failed() == [{1, 2, 9}]
    assert side.what().count("leased") == side.what().count("released")


@pytest.mark.expects_log("1 of its blocks cannot be fetched")
def test_blocks_that_have_arrived_do_not_fail(make, eventually, monkeypatch):
    monkeypatch.setattr(pull_progress, "PULL_BYTES", 1)
    side = make({"pull": [None, None, S.LLM_KV_CACHE_NOT_EXIST]})
    side.load()
    eventually(side.failed)
    assert side.failed() == [{2, 9}]


@pytest.mark.expects_log("its load failed")
def test_an_unknown_failure_says_nothing_of_any_block(make, eventually):
    side = make({"pull": [None, RuntimeError("it fails")]})
    side.load()
    eventually(side.failed)
    assert side.failed() == [{1, 2, 9}]


def test_a_broken_link_is_made_again_once(make, eventually):
    side = make({"pull": [S.LLM_LINK_FAILED]})
    side.load()
    eventually(side.failed)
    assert side.what()[:5] == ["linked", "leased", "released", "dropped", "linked"]
    assert side.failed() == [{9}]


@pytest.mark.expects_log("cannot be fetched")
@pytest.mark.parametrize("status", [S.LLM_LINK_FAILED, S.LLM_TIMEOUT])
def test_a_link_that_breaks_again_ends_the_load(make, eventually, status):
    side = make({"lease": [status, status]})
    side.load()
    eventually(side.failed)
    assert side.failed() == [{1, 2, 9}]
    assert ("silent" in side.what()) is (status is S.LLM_TIMEOUT)


def test_an_abandoned_load_ends_between_two_pulls_and_is_reported(make, eventually, monkeypatch):
    monkeypatch.setattr(pull_progress, "PULL_BYTES", 1)
    side = make()
    reached, go = threading.Event(), threading.Event()
    pull = side.worker.pull_blocks

    def slow_pull(*arguments, **more):
        reached.set()
        go.wait(10)
        pull(*arguments, **more)

    side.worker.pull_blocks = slow_pull
    side.load()
    assert reached.wait(10)
    side.consumer.abandon("r")
    go.set()
    eventually(side.failed)
    assert len(side.worker.pulls) == 1
    assert side.failed() == [{1, 2, 9}]


@pytest.mark.expects_log("transfer_timeout_ms 100 is over")
def test_a_load_ends_by_its_time_limit(make, eventually):
    side = make(transfer_timeout_ms=100)
    pull = side.worker.pull_blocks

    def slow_pull(*arguments, **more):
        threading.Event().wait(0.11)
        pull(*arguments, **more)

    side.worker.pull_blocks = slow_pull
    side.load()
    eventually(side.failed)
    assert len(side.worker.pulls) == 1
    assert side.failed() == [{1, 2, 9}]


def test_an_offer_that_is_not_needed_is_given_back(make, eventually):
    side = make()
    side.consumer.dismiss(OFFER)
    eventually(lambda: "released" in side.what())
    assert side.what() == ["linked", "leased", "released"]


# A producer with more ranks.

OTHER = PEER + 1


class Unequal(Side):
    """A worker alone, whose producer has two."""

    def __init__(self, failing=(), **options):
        super().__init__(failing, **options)
        self.worker.rank_layouts = packed_layouts()

    def load(self):
        self.consumer.load(dataclasses.replace(ORDER, offer=TWO_RANKS))


TWO_RANKS = msgspec.structs.replace(OFFER, ranks=[*OFFER.ranks, RankAddress("b", 1, OTHER)])


@pytest.fixture
def unequal():
    made = []

    def make(*arguments, **options):
        made.append(Unequal(*arguments, **options))
        return made[-1]

    yield make
    for side in made:
        side.close()


def test_all_ranks_are_leased_pulled_together_and_released_once(unequal, eventually):
    side = unequal()
    side.load()
    eventually(lambda: side.what().count("released") == 2)
    assert side.what() == [
        *("linked", "linked", "leased", "leased", "pulled", "renewed", "renewed", "pulled"),
        *("loaded", "released", "released"),
    ]
    (clusters, part, src_blocks, dst_blocks, num_tokens, more), second = side.worker.pulls
    assert (clusters, part, num_tokens, second[1]) == ([PEER, OTHER], 0, 8, 1)
    assert (src_blocks, dst_blocks, more["src_offset"]) == ([[21, 22]] * 2, [1, 2], 0)
    assert [layout.heads for layout in more["src_layouts"]] == [range(1), range(1, 2)]
    assert side.failed() == [{9}]


@pytest.mark.expects_log("2 of its blocks cannot be fetched")
@pytest.mark.parametrize(
    ("failing", "released"),
    [
        ({"lease": [None, S.LLM_KV_CACHE_NOT_EXIST]}, 1),
        ({"pull": [None, S.LLM_PARAM_INVALID]}, 2),
        ({"link": [None, Unreachable("no link")]}, 0),
        ({"link": [None, Incompatible("another model")]}, 0),
    ],
)
def test_a_rank_that_fails_costs_all_blocks(unequal, eventually, failing, released):
    side = unequal(failing)
    side.load()
    eventually(side.failed)
    assert side.failed() == [{1, 2, 9}]
    eventually(lambda: side.what().count("released") == released)


def test_the_link_that_broke_is_made_again(unequal, eventually):
    broken = LLMException("x", status_code=S.LLM_LINK_FAILED, cluster_id=OTHER)
    side = unequal({"pull": [broken]})
    side.load()
    eventually(side.failed)
    assert side.failed() == [{9}]
    assert [event for event in side.events if event[0] == "dropped"] == [("dropped", OTHER)]


@pytest.mark.expects_log("cannot be fetched")
def test_the_rank_that_did_not_answer_is_not_asked_again_at_once(unequal, eventually):
    late = LLMException("x", status_code=S.LLM_TIMEOUT, cluster_id=OTHER)
    side = unequal({"pull": [late]})
    side.load()
    eventually(side.failed)
    assert [event for event in side.events if event[0] == "silent"] == [("silent", OTHER)]


def test_an_offer_of_more_ranks_is_given_back_to_all(unequal, eventually):
    side = unequal()
    side.consumer.dismiss(TWO_RANKS)
    eventually(lambda: side.what().count("released") == 2)
    assert side.what() == ["linked", "leased", "released"] * 2


# What is counted for vLLM's metrics.


def counted(side):
    taken = side.worker.reports.counts.take()
    assert all(seconds >= 0 for seconds in taken.pop("fetch_seconds", {}).get("path7", ()))
    return taken


def test_a_request_that_arrived_is_counted_with_its_bytes_and_path(make, eventually):
    side = make()
    side.consumer.load(dataclasses.replace(ORDER, unavailable=[]))
    eventually(lambda: "released" in side.what())
    assert counted(side) == {
        "requests_fetched": {"path7": 1},
        "fetched_bytes": {"path7": 2 * (2 * 64 + 32)},
        "leases_held": {"": 0},
    }


def test_blocks_that_the_offer_lacks_are_recomputed(make, eventually):
    side = make()
    side.load()
    eventually(side.failed)
    found = counted(side)
    assert found["requests_recomputed"] == {"unavailable": 1}
    assert found["requests_fetched"] == {"path7": 1}


def test_a_request_of_which_the_offer_has_nothing_is_not_fetched(make, eventually):
    side = make()
    side.consumer.load(dataclasses.replace(ORDER, src_blocks=[[]], dst_blocks=[[]]))
    eventually(lambda: "released" in side.what())
    assert counted(side) == {"requests_recomputed": {"unavailable": 1}, "leases_held": {"": 0}}


@pytest.mark.expects_log("cannot be fetched", "its load failed")
@pytest.mark.parametrize(
    ("call", "failure", "reason", "status"),
    [
        ("pull", S.LLM_TIMEOUT, "timeout", "LLM_TIMEOUT"),
        ("pull", S.LLM_SUSPECT_REMOTE_ERROR, "memory_fault", "LLM_SUSPECT_REMOTE_ERROR"),
        ("lease", S.LLM_KV_CACHE_NOT_EXIST, "withdrawn", "LLM_KV_CACHE_NOT_EXIST"),
        ("pull", S.LLM_PARAM_INVALID, "error", "LLM_PARAM_INVALID"),
        ("pull", Late("it took too long"), "timeout", None),
        ("link", Unreachable("no link"), "unreachable", None),
        ("link", Incompatible("another model"), "incompatible", None),
        ("pull", RuntimeError("it fails"), "error", None),
    ],
)
def test_why_a_request_is_recomputed(make, eventually, call, failure, reason, status):
    side = make({call: [failure]})
    side.load()
    eventually(side.failed)
    found = counted(side)
    assert found["requests_recomputed"] == {reason: 1}
    assert found.get("fetch_errors") == (status and {f"path7/{status}": 1})
    assert "requests_fetched" not in found


def test_an_error_of_a_pull_that_was_repeated_counts_too(make, eventually):
    side = make({"pull": [S.LLM_LINK_FAILED]})
    side.load()
    eventually(side.failed)
    found = counted(side)
    assert found["fetch_errors"] == {"path7/LLM_LINK_FAILED": 1}
    assert found["requests_fetched"] == {"path7": 1}


def test_an_aborted_request_is_not_recomputed(make, eventually, monkeypatch):
    monkeypatch.setattr(pull_progress, "PULL_BYTES", 1)
    side = make()
    pull = side.worker.pull_blocks

    def pull_and_abandon(*arguments, **more):
        pull(*arguments, **more)
        side.consumer.abandon("r")

    side.worker.pull_blocks = pull_and_abandon
    side.load()
    eventually(side.failed)
    assert "requests_recomputed" not in counted(side)


@pytest.mark.expects_log("2 of its blocks cannot be fetched and will be recomputed: closed")
def test_a_load_that_has_not_begun_when_the_worker_closes_is_reported(make):
    """A closed instance lets it fail at once."""
    side = make(failing={"link": [None, Unreachable("closed")]}, concurrent_loads=1)
    begun, go_on = threading.Event(), threading.Event()
    side.consumer._pool.submit(lambda: (begun.set(), go_on.wait(10)))
    assert begun.wait(10)
    side.load()
    side.consumer.load(dataclasses.replace(ORDER, request_id="later"))
    go_on.set()
    side.close()
    assert side.failed() == [{9}, {1, 2, 9}]


# What its transfers say of the request.


def test_pulls_have_the_requests_id_and_are_part_of_its_trace(make, eventually):
    side = make()
    side.consumer.load(dataclasses.replace(ORDER, trace_headers=TRACE_HEADERS))
    eventually(side.failed)
    assert side.worker.traces == [("r", TRACE_ID)] * 2
