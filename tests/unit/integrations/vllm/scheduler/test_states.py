"""The scheduler's side of models with states: the state that is needed, or none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from llm_datadist.integrations.vllm.kv_transfer_params import RankAddress, offer_of
from llm_datadist.integrations.vllm.scheduler.pull import PullScheduler
from llm_datadist.integrations.vllm.step_orders import StepOrders
from support.vllm.objects import request

BLOCK = 32
SENT = {"do_remote_decode": True}


def scheduling(block_sizes=(BLOCK, BLOCK), state_groups=(1,)):
    side = PullScheduler(
        StepOrders(), "engine", block_sizes, 1,
        is_producer=True, is_consumer=True, state_groups=state_groups,
    )  # fmt: skip
    side.ranks = [RankAddress("192.0.2.7", 7000, 1)]
    return side


def blocks_of(num_tokens, first):
    """Blocks of tokens, and those of states, of which only the last is left."""
    count = -(-num_tokens // BLOCK)
    return [first + index for index in range(count)], [0] * (count - 1) + [first + 90]


def prefilled(num_tokens=100, *, side=None, computed=None, blocks=None, **more):
    """The request of a finished prompt, and what is offered of it."""
    side = side or scheduling()
    one = request("p", range(num_tokens), SENT, **more)
    side.arrived(one)
    one.num_computed_tokens = one.num_prompt_tokens if computed is None else computed
    blocks = blocks or blocks_of(one.num_computed_tokens, 10)
    side.allocated(one, blocks, 0)
    return one, side.finished(one, blocks)[1]


def loaded(params, num_tokens=100, num_local=0, blocks=None, side=None):
    """The order to load an offer, or None."""
    side, one = side or scheduling(), request("d", range(num_tokens), params)
    side.arrived(one)
    assert one.num_prompt_tokens == num_tokens
    num_external = side.num_new_matched_tokens(one, num_local)
    side.allocated(one, blocks or blocks_of(num_tokens - 1, 20), num_external)
    loads = side._orders.take().loads
    return loads[0] if loads else None


@pytest.mark.parametrize("num_tokens", [3, 33, 34, 64, 65, 66, 100])
def test_the_prompt_is_computed_but_for_its_last_token(num_tokens):
    tokens = list(range(num_tokens))
    one, params = prefilled(num_tokens)
    assert one.num_prompt_tokens == num_tokens - 1
    assert one.prompt_token_ids == one._all_token_ids == tokens[:-1]
    offer = offer_of(params)
    assert offer.num_tokens == num_tokens - 1
    load = loaded(params, num_tokens)
    assert load.src_blocks[1] == [100]
    assert load.dst_blocks[1] == [110]
    assert len(load.src_blocks[0]) == -(-(num_tokens - 1) // BLOCK)
    assert not load.unavailable


def test_the_list_of_tokens_that_the_front_end_has_is_not_changed():
    tokens = list(range(100))
    one = request("p", tokens, SENT, prompt_token_ids=tokens)
    scheduling().arrived(one)
    assert len(one.prompt_token_ids) == 99
    assert len(tokens) == 100


def test_with_tokens_of_its_own_the_consumer_still_needs_the_last_state():
    _, params = prefilled()
    load = loaded(params, num_local=64)
    assert load.src_blocks == [[12, 13], [100]]
    assert load.dst_blocks == [[22, 23], [110]]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"max_tokens": 2}, 'write "max_tokens": 1'),
        ({"sampling_params": None}, "a further token would replace its state"),
        ({"sampling_params": SimpleNamespace(prompt_logprobs=1)}, "log probabilities"),
        ({"resumable": True}, "more of the prompt may follow"),
        ({"prompt_embeds": object()}, "does not consist of token ids alone"),
        ({"_all_token_ids": None}, "this version of vLLM"),
        ({"mm_features": [SimpleNamespace(
            identifier="i", mm_position=SimpleNamespace(offset=90, length=10)
        )]}, "part of an image"),
    ],
)  # fmt: skip
@pytest.mark.expects_log("it will not be offered, because this model has states")
def test_a_prompt_that_cannot_be_shortened_is_not_offered(more, text, caplog):
    one, params = prefilled(**more)
    assert params is None
    assert one.num_prompt_tokens == 100
    assert text in caplog.text


@pytest.mark.parametrize("num_tokens", [1, 2])
def test_prompts_of_which_nothing_is_left_to_load_are_not_shortened(num_tokens):
    one, params = prefilled(num_tokens)
    assert (one.num_prompt_tokens, params) == (num_tokens, None)


@pytest.mark.parametrize("computed", [98, 100, 130])
def test_a_state_after_more_or_less_tokens_is_not_offered(computed):
    assert prefilled(computed=computed)[1] is None


@pytest.mark.expects_log("needed is that before the last token")
@pytest.mark.parametrize("num_tokens", [64, 98, 100])
def test_a_state_after_other_tokens_is_not_loaded(num_tokens):
    _, params = prefilled()
    assert loaded({**params, "num_tokens": num_tokens}) is None


@pytest.mark.expects_log("it is of another prompt")
def test_the_digest_is_that_of_the_whole_prompt():
    _, params = prefilled()
    one = request("d", [*range(99), 7], params)
    assert scheduling().num_new_matched_tokens(one, 0) == 0


@pytest.mark.parametrize("lost", ["source", "destination"])
def test_without_its_state_nothing_of_a_prompt_counts(lost):
    """A load that lacks blocks is reported as failed, and vLLM computes the whole prompt."""
    tokens, _ = blocks_of(99, 10)
    _, params = prefilled(blocks=(tokens, [0] * 4) if lost == "source" else None)
    there = blocks_of(99, 20)
    load = loaded(params, blocks=(there[0], [0] * 4) if lost == "destination" else there)
    assert load.dst_blocks[1] == []
    assert load.unavailable


def test_an_earlier_state_that_vllm_keeps_is_loaded_too_or_nothing_counts():
    """It would put what is in that block into its prefix cache."""
    tokens, there = blocks_of(99, 10)[0], blocks_of(99, 20)[0]
    _, both = prefilled(blocks=(tokens, [0, 0, 55, 100]))
    load = loaded(both, blocks=(there, [0, 0, 66, 110]))
    assert (load.src_blocks[1], load.dst_blocks[1]) == ([55, 100], [66, 110])
    assert loaded(both).dst_blocks[1] == [110], "one that only the producer keeps is not needed"
    _, one = prefilled()
    assert loaded(one, blocks=(there, [0, 0, 66, 110])).unavailable == [66]


@pytest.mark.parametrize(
    ("src", "dst"), [([0, 0, 55, 0], [0, 0, 66, 110]), ([0, 0, 55, 100], [0, 0, 66, 0])]
)
def test_an_earlier_state_is_not_taken_for_the_last(src, dst):
    tokens, there = blocks_of(99, 10)[0], blocks_of(99, 20)[0]
    _, params = prefilled(blocks=(tokens, src))
    assert loaded(params, blocks=(there, dst)).unavailable


@pytest.mark.expects_log("which must be equal for models with states")
@pytest.mark.parametrize("groups", [1, 2])
def test_states_move_between_equal_blocks_only(groups):
    side = scheduling((BLOCK,) * groups, (groups - 1,))
    blocks = blocks_of(99, 10)[-groups:]
    _, params = prefilled(side=side, blocks=blocks)
    other = scheduling((2 * BLOCK,) * groups, (groups - 1,))
    assert loaded(params, side=other, blocks=blocks) is None


def test_models_without_states_are_prefilled_whole():
    one = request("p", range(100), SENT)
    scheduling(state_groups=()).arrived(one)
    assert one.num_prompt_tokens == 100
