"""The scheduler's side: what is offered, fetched, dismissed, abandoned, and when nothing is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from llm_datadist.integrations.vllm.kv_transfer_params import RankAddress, offer_of
from llm_datadist.integrations.vllm.scheduler.pull import PullScheduler
from llm_datadist.integrations.vllm.step_orders import StepOrders
from support.vllm.objects import request

RANK = RankAddress("192.0.2.7", 7000, 1)
BLOCK = 32


def scheduling(
    *, is_producer=True, is_consumer=True, block_sizes=(BLOCK,), num_ranks=1, state_groups=()
):
    roles = {"is_producer": is_producer, "is_consumer": is_consumer, "state_groups": state_groups}
    side = PullScheduler(StepOrders(), "engine", block_sizes, num_ranks, **roles)
    side.ranks = [RANK] * num_ranks
    return side


def prefilled(request_id="p", tokens=range(100), *, side=None, blocks=None, **more):
    """What a producer offers of a finished prompt, and its orders."""
    side = side or scheduling()
    one = request(request_id, tokens, {"do_remote_decode": True}, **more)
    assert side.num_new_matched_tokens(one, 0) == 0
    blocks = blocks or ([10 + i for i in range(-(-len(tokens) // BLOCK))],)
    side.allocated(one, blocks, 0)
    first = side._orders.take()
    is_kept, params = side.finished(one, blocks)
    return is_kept, params, first, side._orders.take()


def consumer_request(params, tokens=range(100)):
    return request("d", tokens, params)


def test_a_finished_prompt_is_offered_and_held():
    is_kept, params, first, second = prefilled()
    offer = offer_of(params)
    assert is_kept
    assert first.publish == {"p": offer.key}
    assert second.hold == ["p"]
    assert not second.withdraw
    assert offer.blocks == [[10, 11, 12, 13]]
    assert (offer.num_tokens, offer.ranks, offer.remote_request_id) == (100, [RANK], "p")


def test_a_load_has_the_trace_of_its_request():
    _, params, _, _ = prefilled()
    side, headers = scheduling(), {"traceparent": "00-1-2-01"}
    one = request("d", range(100), params, trace_headers=headers)
    side.num_new_matched_tokens(one, 0)
    side.allocated(one, ([20, 21, 22, 23],), 99)
    (load,) = side._orders.take().loads
    assert load.trace_headers == headers


def test_only_blocks_of_the_prompt_are_offered():
    blocks = (list(range(10, 20)),)
    _, params, _, _ = prefilled(blocks=blocks, num_computed_tokens=300)
    assert offer_of(params).blocks == [[10, 11, 12, 13]]


def test_keys_differ_and_leave_room_for_parts():
    keys = [offer_of(prefilled()[1]).key for _ in range(20)]
    assert len(set(keys)) == 20
    assert all(key % 256 == 0 and 0 < key < 2**63 for key in keys)


@pytest.mark.parametrize(
    "more",
    [
        {"status": SimpleNamespace(name="FINISHED_ABORTED")},
        {"num_computed_tokens": 0},
        {"tokens": range(1)},
        {"prompt_embeds": object()},
    ],
)
def test_what_nobody_can_use_is_withdrawn(more):
    is_kept, params, first, second = prefilled(**more)
    assert (is_kept, params) == (False, None)
    assert second.withdraw == list(first.publish) == ["p"]
    assert not second.hold


def test_requests_that_want_nothing_of_it():
    side = scheduling()
    one = request()
    assert side.num_new_matched_tokens(one, 0) == 0
    side.allocated(one, ([1, 2, 3, 4],), 0)
    assert side.finished(one, ([1, 2, 3, 4],)) == (False, None)
    orders = side._orders.take()
    assert not any(
        (orders.publish, orders.hold, orders.withdraw, orders.loads, orders.dismiss, orders.abandon)
    )


def test_all_but_the_last_token_are_fetched():
    _, params, _, _ = prefilled()
    side, one = scheduling(), consumer_request(params)
    assert side.num_new_matched_tokens(one, 0) == 99
    assert side.num_new_matched_tokens(one, 0) == 99  # asking changes nothing
    side.allocated(one, ([20, 21, 22, 23],), 99)
    (load,) = side._orders.take().loads
    assert (load.src_blocks, load.dst_blocks) == ([[10, 11, 12, 13]], [[20, 21, 22, 23]])
    assert side.num_new_matched_tokens(one, 0) == 0  # once: after a failure it is computed
    side.loaded({"d"})
    side.finished(one, ([20, 21, 22, 23],))
    orders = side._orders.take()
    assert not orders.abandon
    assert not orders.dismiss


@pytest.mark.parametrize(("length", "num_tokens", "num_blocks"), [(33, 32, 1), (65, 64, 2)])
def test_a_block_of_the_last_token_alone_is_not_fetched(length, num_tokens, num_blocks):
    _, params, _, _ = prefilled(tokens=range(length))
    side, one = scheduling(), consumer_request(params, range(length))
    assert side.num_new_matched_tokens(one, 0) == num_tokens
    side.allocated(one, (list(range(20, 20 + num_blocks)),), num_tokens)
    (load,) = side._orders.take().loads
    assert load.dst_blocks == [list(range(20, 20 + num_blocks))]


def test_a_local_prefix_is_not_fetched():
    _, params, _, _ = prefilled()
    side, one = scheduling(), consumer_request(params)
    assert side.num_new_matched_tokens(one, 64) == 35
    side.allocated(one, ([5, 6, 22, 23],), 35)
    (load,) = side._orders.take().loads
    assert (load.src_blocks, load.dst_blocks) == ([[12, 13]], [[22, 23]])


def test_an_offer_that_is_not_needed_is_dismissed():
    _, params, _, _ = prefilled(tokens=range(97))
    side, one = scheduling(), consumer_request(params, range(97))
    assert side.num_new_matched_tokens(one, 96) == 0
    side.allocated(one, ([5, 6, 7, 8],), 0)
    orders = side._orders.take()
    assert orders.dismiss == [offer_of(params)]
    assert not orders.loads


@pytest.mark.parametrize("asked", [True, False])
def test_a_request_that_ends_before_it_is_scheduled_dismisses(asked):
    _, params, _, _ = prefilled()
    side, one = scheduling(), consumer_request(params)
    if asked:
        side.num_new_matched_tokens(one, 0)
    assert side.finished(one, ([],)) == (False, None)
    assert side._orders.take().dismiss == [offer_of(params)]


def test_a_request_that_ends_while_it_loads_is_abandoned():
    _, params, _, _ = prefilled()
    side, one = scheduling(), consumer_request(params)
    side.num_new_matched_tokens(one, 0)
    side.allocated(one, ([20, 21, 22, 23],), 99)
    side._orders.take()
    side.finished(one, ([20, 21, 22, 23],))
    orders = side._orders.take()
    assert orders.abandon == ["d"]
    assert not orders.dismiss


def test_window_blocks_that_were_left_behind():
    """Two groups, one of a sliding window that has lost blocks on one or both sides."""
    blocks = ([10, 11, 12, 13], [0, 0, 32, 33])
    producer = scheduling(block_sizes=(BLOCK, BLOCK))
    _, params, _, _ = prefilled(side=producer, blocks=blocks)
    side, one = scheduling(block_sizes=(BLOCK, BLOCK)), consumer_request(params)
    side.num_new_matched_tokens(one, 0)
    side.allocated(one, ([20, 21, 22, 23], [0, 41, 42, 43]), 99)
    (load,) = side._orders.take().loads
    assert load.src_blocks == [[10, 11, 12, 13], [32, 33]]
    assert load.dst_blocks == [[20, 21, 22, 23], [42, 43]]
    assert load.unavailable == [41]


@pytest.mark.parametrize(
    ("side", "tokens", "text"),
    [
        ({}, range(1, 101), "another prompt"),
        ({"is_consumer": False}, range(100), "kv_role"),
        ({"block_sizes": (32, 32)}, range(100), "1 KV cache groups, this engine 2"),
    ],
)
@pytest.mark.expects_log("will be recomputed")
def test_offers_that_do_not_fit_are_not_used(side, tokens, text, caplog):
    _, params, _, _ = prefilled()
    side, one = scheduling(**side), consumer_request(params, tokens)
    assert side.num_new_matched_tokens(one, 0) == 0
    assert text in caplog.text
    side.allocated(one, ([20, 21, 22, 23],), 0)
    side.finished(one, ([20, 21, 22, 23],))
    orders = side._orders.take()
    assert not orders.loads
    assert not orders.dismiss  # they may be another request's
    assert side.counts.take() == {"requests_recomputed": {"offer": 1}}


@pytest.mark.expects_log("will be recomputed")
@pytest.mark.parametrize(
    ("changed", "producer", "consumer", "text"),
    [
        ({"blocks": [[10, 11, 12]]}, {}, {}, "3 blocks of 32 tokens do not hold 100 tokens"),
        ({"block_sizes": [16]}, {}, {}, "4 blocks of 16 tokens do not hold 100 tokens"),
        ({"ranks": [RankAddress("a", 1, 2)] * 2}, {}, {"num_ranks": 3}, "2, this engine 3"),
        (
            {"block_sizes": [64, 64]},
            {"block_sizes": (32, 32)},
            {"block_sizes": (32, 32)},
            "block size 64, 64, this engine 32, 32, which must be equal with several",
        ),
        (
            {"blocks": [[0, 11, 12, 13]], "block_sizes": [64]},
            {},
            {},
            "block size 64, this engine 32, which must be equal when a sliding window",
        ),
    ],
)
def test_offers_of_engines_that_are_too_unequal_are_not_used(
    changed, producer, consumer, text, caplog
):
    groups = len(producer.get("block_sizes", (BLOCK,)))
    blocks = ([10, 11, 12, 13],) * groups
    _, params, _, _ = prefilled(side=scheduling(**producer), blocks=blocks)
    side, one = scheduling(**consumer), consumer_request({**params, **changed})
    assert side.num_new_matched_tokens(one, 0) == 0
    assert text in caplog.text


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_tensor_parallel_sizes_of_which_one_is_a_multiple_can_differ(num_ranks):
    _, params, _, _ = prefilled()
    side, one = scheduling(num_ranks=num_ranks), consumer_request(params)
    assert side.num_new_matched_tokens(one, 0) == 99


@pytest.mark.parametrize(
    ("dst_size", "local", "src_blocks", "dst_blocks", "src_offset"),
    [
        (16, 0, [10, 11, 12, 13], [20, 21, 22, 23, 24, 25, 26], 0),
        (16, 48, [11, 12, 13], [23, 24, 25, 26], 16),
        (64, 0, [10, 11, 12, 13], [20, 21], 0),
        (64, 64, [12, 13], [21], 0),
        (128, 0, [10, 11, 12, 13], [20], 0),
    ],
)
def test_blocks_of_another_size(dst_size, local, src_blocks, dst_blocks, src_offset):
    """What is fetched are tokens, from the first one of a local block on."""
    _, params, _, _ = prefilled()
    side, one = scheduling(block_sizes=(dst_size,)), consumer_request(params)
    assert side.num_new_matched_tokens(one, local) == 99 - local
    allocated = list(range(20, 20 + -(-99 // dst_size)))
    side.allocated(one, (allocated,), 99 - local)
    (load,) = side._orders.take().loads
    assert (load.src_blocks, load.dst_blocks) == ([src_blocks], [dst_blocks])
    assert (load.src_offset, load.num_tokens) == (src_offset, 99 - local)
    assert not load.unavailable


def test_blocks_of_another_size_that_a_local_window_has_left_behind():
    _, params, _, _ = prefilled()
    side, one = scheduling(block_sizes=(16,)), consumer_request(params)
    side.num_new_matched_tokens(one, 0)
    side.allocated(one, ([0, 0, 22, 23, 24, 25, 26],), 99)
    (load,) = side._orders.take().loads
    assert (load.dst_blocks, load.unavailable) == ([[]], [22, 23, 24, 25, 26])


@pytest.mark.expects_log("pass on what the producer returned, unchanged")
def test_malformed_offers_are_not_used():
    side, one = scheduling(), consumer_request({"do_remote_prefill": True})
    assert side.num_new_matched_tokens(one, 0) == 0
