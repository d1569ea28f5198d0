"""Offers as kv_transfer_params, and what a prompt's digest depends on."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest

from llm_datadist.integrations.vllm.kv_layout import MAX_KEY
from llm_datadist.integrations.vllm.kv_transfer_params import (
    Offer,
    RankAddress,
    mailbox_key_of_slot,
    offer_of,
    producer_problem,
    prompt_digest,
    shape_of,
    wants_remote_decode,
)
from llm_datadist.integrations.vllm.stages import EngineShape
from support.vllm.objects import request

OFFER = Offer(
    key=256,
    ranks=[RankAddress("192.0.2.7", 7000, 2**63 - 1)],
    blocks=[[4, 5]],
    block_sizes=[32],
    num_tokens=40,
    prompt="d",
    remote_request_id="r",
    remote_engine_id="e",
)


def test_an_offer_survives_json():
    params = msgspec.json.decode(msgspec.json.encode(OFFER.to_params()))
    assert offer_of(params) == OFFER


@pytest.mark.parametrize("params", [None, {}, {"do_remote_decode": True}, {"other": 1}])
def test_no_offer(params):
    assert offer_of(params) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"key": "7"},
        {"key": 0},
        {"key": 2**63},
        {"ranks": []},
        {"ranks": [{"ip": "x"}]},
        {"ranks": [{"ip": "x", "port": 1, "cluster_id": 1, "layers": [1, 2, 3]}]},
        {"ranks": [{"ip": "x", "port": 1, "cluster_id": 1, "stage": "0"}]},
        {"blocks": []},
        {"blocks": [["a"]]},
        {"blocks": [[4, -1]]},
        {"block_sizes": [0]},
        {"block_sizes": [32, 32]},
        {"block_sizes": [2**40]},
        {"num_tokens": 0},
        {"prompt": None},
    ],
)
def test_malformed_offers(fields):
    with pytest.raises(ValueError, match="offer"):
        offer_of({**OFFER.to_params(), **fields})


def test_missing_fields():
    with pytest.raises(ValueError, match="unchanged"):
        offer_of({"do_remote_prefill": True})


def test_who_wants_remote_decode():
    assert wants_remote_decode({"do_remote_decode": True, "do_remote_prefill": False})
    for params in (None, {}, OFFER.to_params(), {"do_remote_decode": "yes"}):
        assert not wants_remote_decode(params)


def test_the_digest_tells_prompts_apart():
    feature = SimpleNamespace(identifier="i", mm_position=SimpleNamespace(offset=3, length=4))
    moved = SimpleNamespace(identifier="i", mm_position=SimpleNamespace(offset=4, length=4))
    requests = [
        request(tokens=[1, 2, 3]),
        request(tokens=[1, 2, 4]),
        request(tokens=[1, 2]),
        request(tokens=[1, 2, 3], lora_request=SimpleNamespace(lora_name="l")),
        request(tokens=[1, 2, 3], mm_features=[feature]),
        request(tokens=[1, 2, 3], mm_features=[moved]),
    ]
    digests = [prompt_digest(each) for each in requests]
    assert len(set(digests)) == len(requests)
    assert digests[0] == prompt_digest(request("another id", [1, 2, 3]))


def test_a_prompt_of_embeddings_has_no_digest():
    assert prompt_digest(request(prompt_embeds=object())) is None
    assert prompt_digest(request(prompt_token_ids=None)) is None


@pytest.mark.parametrize(
    ("producer", "consumer", "text"),
    [
        (2, 2, ""),
        (2, 1, ""),
        (1, 4, ""),
        (2, 3, "tensor parallel size 2, this engine 3; one must be a multiple of the other"),
        (3, 2, "tensor parallel size 3, this engine 2; one must be a multiple of the other"),
        (4, 6, "tensor parallel size 4, this engine 6"),
    ],
)
def test_tensor_parallel_sizes(producer, consumer, text):
    problem = producer_problem(OFFER.ranks * producer, consumer, is_consumer=True)
    assert text in problem
    assert bool(problem) is bool(text)


def workers(*stages, tp_size=1):
    """Workers of an engine whose stages have these layers."""
    return [
        RankAddress("a", 1, 10 * stage + rank, stage, layers)
        for stage, layers in enumerate(stages)
        for rank in range(tp_size)
    ]


@pytest.mark.parametrize("tp_size", [1, 2, 3])
def test_the_shape_of_an_engine(tp_size):
    halves = workers((0, 16), (16, 30), tp_size=tp_size)
    assert shape_of(halves) == EngineShape(tp_size, (range(16), range(16, 30)))
    assert shape_of(workers(None, None, tp_size=tp_size)) == EngineShape(tp_size, (None, None))
    assert shape_of(OFFER.ranks * tp_size) == EngineShape(tp_size, (None,))


HALVES = workers((0, 16), (16, 30), tp_size=2)


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        (HALVES[:3], "3 workers have the pipeline-parallel ranks 0, 0, 1, not 0"),
        (HALVES[1:], "ranks 0, 1, 1, not 0"),
        (HALVES[2:], "ranks 1, 1, not 0"),
        (HALVES[::-1], "ranks 1, 1, 0, 0, not 0"),
        ([HALVES[0], HALVES[2], HALVES[1], HALVES[3]], "ranks 0, 1, 0, 1, not 0"),
        (workers((0, 17), (16, 30)), "rank 0 has the layers 0 to 16, rank 1 16 to 29: they must"),
        (workers((0, 15), (16, 30)), "rank 0 has the layers 0 to 14, rank 1 16 to 29: they must"),
        (workers((16, 30), (0, 16)), "rank 0 has the layers 16 to 29, rank 1 0 to 15: they must"),
        (
            [*workers((0, 16)), *workers((0, 15))],
            "of the producer's pipeline-parallel rank 0 have the layers 0 to 15 and 0 to 14",
        ),
        ([*workers((0, 16)), *workers(None)], "layers 0 to 15 and unknown, which must be the same"),
        (workers((4, 4)), "worker 0 of the producer has the layers 4 to 3"),
        (workers((-1, 4)), "layers -1 to 3"),
        (workers((0, 1 << 40)), "worker 0 of the producer has the layers 0 to"),
        ([RankAddress("a", 1, 1, 1 << 60)] * 4096, "4096 workers have"),
        ([RankAddress("a", 1, 1, -1)], "ranks -1, not 0"),
    ],
)
def test_workers_that_are_no_engine(ranks, text):
    with pytest.raises(ValueError, match=text):
        shape_of(ranks)
    assert text in producer_problem(ranks, 1, is_consumer=True)


def test_stages_do_not_count_for_the_tensor_parallel_size():
    assert producer_problem(HALVES, 1, is_consumer=True) == ""
    assert "size 2, this engine 3" in producer_problem(HALVES, 3, is_consumer=True)


def test_mailboxes_of_several_workers_have_keys_of_their_own():
    keys = [mailbox_key_of_slot(MAX_KEY - 2, slot) for slot in range(5)]
    assert keys[0] == MAX_KEY - 2
    assert len(set(keys)) == 5
    assert all(0 < key <= MAX_KEY for key in keys)
