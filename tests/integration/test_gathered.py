"""Short pieces of a peer on the same host: its threads gather them, and every guarantee holds."""

from __future__ import annotations

import numpy as np
import pytest

from llm_datadist import BlocksCacheKey, LLMException
from llm_datadist._engine.transfer import attempt
from llm_datadist.testing import FaultPolicy, FaultRule, inject_faults
from support.instances import LASTING, PAGE, Pages, Side, failing, finalize, link
from support.kv_caches import HEAD_SIZE, HEADS, LAYERS, NUM_BLOCKS, KvCache, tokens_of_model

OWNER, OWN = 1, 2
KEY = BlocksCacheKey(OWNER)
BLOCK_TOKENS = 32
BLOCKS = [7, 2, 9, 4, 0, 11, 3]
OWN_BLOCKS = [1, 8, 3, 6, 10, 5, 0]
TOKENS = BLOCK_TOKENS * len(BLOCKS) - 5
HELD = 2 * HEAD_SIZE * 4  # bytes of a token that the reader wants


@pytest.fixture(scope="module")
def linked():
    owner, own = Side(OWNER, "host", **LASTING), Side(OWN, "host", sync_kv_timeout=5000, **LASTING)
    link(own.instance, owner.address)
    yield owner, own
    finalize(owner, own)


@pytest.fixture
def sides(linked):
    yield linked
    for side in linked:
        side.clean()


@pytest.fixture(params=["chosen", "gathered", "in pieces"])
def way(request, monkeypatch):
    """What must hold, holds whichever way is taken."""
    if request.param != "chosen":
        gathered = request.param == "gathered"
        monkeypatch.setattr(attempt, "reads_gathered", lambda *_, **__: gathered)
    return request.param


def caches(sides, **other):
    """All heads at the owner, the last two of them at the reader; tokens of the owner's blocks."""
    owner, own = sides
    remote = KvCache(owner, block_tokens=BLOCK_TOKENS, **other)
    model = tokens_of_model(TOKENS)
    remote.put(model, BLOCKS)
    return remote, KvCache(own, tp=2, rank=1, block_tokens=BLOCK_TOKENS), model


def pull(own, local, **other):
    own.manager.pull_resharded([KEY], local.cache, [BLOCKS], OWN_BLOCKS, TOKENS, **other)


def gathered_bytes(own):
    return own.instance.describe_link(OWNER)["channel"]["gathered_bytes"]


def test_the_owner_gathers_what_is_faster_so(sides):
    _, local, model = caches(sides)
    own = sides[1]
    (report,) = own.manager.explain_resharded([KEY], local.cache, [BLOCKS], OWN_BLOCKS, TOKENS)
    assert (report.backend, report.way, report.piece_bytes) == ("host", "gathered", HELD)
    assert f"gathered {report.expected_rate:.2f}" in report.why
    before = gathered_bytes(own)
    pull(own, local)
    assert (local.tokens(OWN_BLOCKS, TOKENS) == local.part(model)).all()
    assert np.count_nonzero(local.rows) == local.part(model).size
    assert gathered_bytes(own) - before == local.part(model).nbytes


def test_a_small_call_and_whole_blocks_are_read_directly(sides):
    remote, local, _ = caches(sides)
    own = sides[1]
    before = gathered_bytes(own)
    own.manager.pull_resharded([KEY], local.cache, [BLOCKS], OWN_BLOCKS, 9)
    (report,) = own.manager.explain_resharded([KEY], local.cache, [BLOCKS], OWN_BLOCKS, 9)
    assert report.way == "direct"
    equal = KvCache(own, block_tokens=BLOCK_TOKENS, key=None)
    whole = TOKENS // BLOCK_TOKENS * BLOCK_TOKENS
    own.manager.pull_resharded([KEY], equal.cache, [BLOCKS], OWN_BLOCKS, whole)
    (report,) = own.manager.explain_resharded([KEY], equal.cache, [BLOCKS], OWN_BLOCKS, whole)
    assert (report.way, "whole blocks" in report.why) == ("direct", True)
    assert gathered_bytes(own) == before
    assert (equal.tokens(OWN_BLOCKS, whole) == remote.tokens(BLOCKS, whole)).all()
    (report,) = own.manager.explain_resharded(
        [KEY], local.cache, [BLOCKS], OWN_BLOCKS, TOKENS, push=True
    )
    assert report.way == "direct"


def test_each_token_comes_from_its_place(sides, way):
    _, local, model = caches(sides)
    pull(sides[1], local)
    assert (local.tokens(OWN_BLOCKS, TOKENS) == local.part(model)).all()
    assert np.count_nonzero(local.rows) == local.part(model).size


@pytest.mark.usefixtures("way")
def test_a_cache_that_is_gone_gives_nothing(sides):
    remote, local, _ = caches(sides)
    sides[0].manager.unregister_cache(remote.id)
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_resharded", peer=OWNER):
        pull(sides[1], local)
    assert not local.rows.any()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_cache_that_ends_during_the_transfer_is_never_success(sides, when, monkeypatch):
    """A generation that has changed: the bytes may be those of a later user of the memory."""
    remote, local, _ = caches(sides)
    owner, own = sides
    data = own.instance._engine.links.get(OWNER, "test").data
    run = type(data).run

    def ended(plane, transfer):
        if when == "before":
            owner.manager.unregister_cache(remote.id)
        outcome = run(plane, transfer)
        if when == "after":
            owner.manager.unregister_cache(remote.id)
        return outcome

    monkeypatch.setattr(type(data), "run", ended)
    if when == "after":
        pull(own, local)  # it counted before the cache ended
        return
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_resharded", peer=OWNER):
        pull(own, local)


@pytest.mark.usefixtures("way")
@pytest.mark.expects_log("met a fault in local memory")
def test_memory_at_fault_is_named_and_the_rest_arrives(sides):
    owner, own = sides
    block_bytes = BLOCK_TOKENS * HEADS * HEAD_SIZE * 4
    assert block_bytes == PAGE
    pages = Pages(2 * LAYERS, NUM_BLOCKS)
    try:
        _, local, model = caches(sides, data=pages.data)
        pages.protect(3, 9)
        with failing("LLM_SUSPECT_REMOTE_ERROR", "pull_resharded", "block 9", peer=OWNER) as caught:
            pull(own, local)
        faults = {(each.cluster_id, each.tensor_index, each.block) for each in caught.value.faults}
        assert faults == {(OWNER, 3, 9)}
        missing = local.tokens(OWN_BLOCKS, TOKENS) != local.part(model)
        at = BLOCKS.index(9) * BLOCK_TOKENS
        assert missing[1, 1, at : at + BLOCK_TOKENS].all()
        assert missing.sum() == missing[1, 1, at : at + BLOCK_TOKENS].size
    finally:
        owner.clean()
        pages.replace(3, 9)
        pages.close()


@pytest.mark.usefixtures("way")
def test_checksums_are_compared(linked):
    owner, _ = linked
    own = Side(3, "host", checksum="crc32c", sync_kv_timeout=5000)
    link(own.instance, owner.address)
    try:
        _, local, model = caches((owner, own))
        pull(own, local)
        assert (local.tokens(OWN_BLOCKS, TOKENS) == local.part(model)).all()
        policy = FaultPolicy([FaultRule("corrupt")], seed=3)
        with inject_faults(own.instance, policy), pytest.raises(LLMException, match="crc32c"):
            pull(own, local)
    finally:
        finalize(own)
        owner.clean()


def test_an_owner_whose_lanes_are_lost_is_read_directly(sides, monkeypatch):
    _, local, model = caches(sides)
    own = sides[1]
    data = own.instance._engine.links.get(OWNER, "test").data
    channel = data.channel
    monkeypatch.setattr(channel._lanes, "host", None)
    before = gathered_bytes(own)
    pull(own, local)
    assert gathered_bytes(own) == before
    assert (local.tokens(OWN_BLOCKS, TOKENS) == local.part(model)).all()
    (report,) = own.manager.explain_resharded([KEY], local.cache, [BLOCKS], OWN_BLOCKS, TOKENS)
    assert (report.way, "does not gather" in report.why) == ("direct", True)
    monkeypatch.setattr(channel, "_gathers_after_ns", 0)
