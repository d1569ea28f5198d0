"""A request id goes through every call that transfers, into its spans and errors."""

import asyncio

import msgspec
import pytest

from llm_datadist import (
    BlocksCacheKey,
    LayerSynchronizer,
    LLMException,
    TransferConfig,
)
from llm_datadist.aio import Node
from support.instances import eventually, failing, finalize, linked_sides, pattern
from support.kv_caches import KvCache
from support.setup import ANY_PORT
from support.spans import spans

__all__ = ["spans"]

NAMED = {"request_id": "cmpl-7"}


class Ready(LayerSynchronizer):
    def synchronize_layer(self, layer_index, timeout_in_millis):
        return True


def layer_wise(manager, local, remote):
    addrs = [tensor.ctypes.data for tensor in remote.data]
    config = TransferConfig(remote.side.id, addrs)
    task = manager.transfer_cache_async(local.cache, Ready(), [config], **NAMED)
    task.synchronize(10_000)


CALLS = {
    "pull_blocks": lambda manager, local, remote: manager.pull_blocks(
        BlocksCacheKey(remote.side.id), local.cache, [1, 2], [3, 4], **NAMED
    ),
    "push_blocks": lambda manager, local, remote: manager.push_blocks(
        BlocksCacheKey(remote.side.id), local.cache, [1, 2], [3, 4], **NAMED
    ),
    "pull_cache": lambda manager, local, remote: manager.pull_cache(
        remote.slot(), local.cache, **NAMED
    ),
    "push_cache": lambda manager, local, remote: manager.push_cache(
        remote.slot(), local.cache, **NAMED
    ),
    "transfer_cache_async": layer_wise,
}


@pytest.mark.parametrize("operation", CALLS)
def test_each_transfer_of_a_call_has_a_span_in_the_callers_trace(sides, backend, spans, operation):
    own, other = sides
    if operation.endswith("blocks"):
        local, remote = own.blocks(1), other.blocks(2, key=0)
    else:
        local, remote = own.slots(1, tensors=2), other.slots(2, tensors=2)
    with spans.current() as parent:
        CALLS[operation](own.manager, local, remote)
    (span,) = spans.ended()
    assert span.name == operation
    assert span.parent.span_id == parent.get_span_context().span_id
    assert span.attributes["llm_datadist.request_id"] == "cmpl-7"
    assert span.attributes["llm_datadist.path"] == backend
    assert span.attributes["llm_datadist.peer.cluster_id"] == "2"
    moved = 2 * local.data[0, 0].nbytes * (4 if operation.endswith("blocks") else 1)
    assert span.attributes["llm_datadist.bytes"] == moved


@pytest.mark.parametrize("operation", ["pull_blocks", "push_cache"])
def test_both_ends_have_a_span_in_one_trace(sides, spans, operation, caplog):
    caplog.set_level("DEBUG", "llm_datadist")
    own, other = sides
    if operation.endswith("blocks"):
        local, remote = own.blocks(1), other.blocks(2, key=0)
    else:
        local, remote = own.slots(1, tensors=2), other.slots(2, tensors=2)
    with spans.current() as parent:
        CALLS[operation](own.manager, local, remote)
    trace_id = parent.get_span_context().trace_id

    def served():
        return [span for span in spans.served() if span.context.trace_id == trace_id]

    eventually(served)
    (span,), (served,) = spans.ended(), served()
    assert served.name == operation
    assert served.parent.span_id == span.context.span_id
    same = ("request_id", "path", "bytes", "status")
    for name in [f"llm_datadist.{each}" for each in same]:
        assert served.attributes[name] == span.attributes[name]
    assert served.attributes["llm_datadist.peer.cluster_id"] == "1"
    assert f"{operation}, request cmpl-7, by peer cluster 1 at" in caplog.text


def test_the_owner_learns_of_the_last_transfer_before_an_unlink(spans):
    """Also of what the initiator has queued for a later message."""
    sides = own, other = linked_sides("tcp")
    local, remote = own.blocks(1), other.blocks(2, key=0)
    for _ in range(3):
        CALLS["pull_blocks"](own.manager, local, remote)
    finalize(own)
    eventually(lambda: len(spans.served()) == 3)
    finalize(*sides[1:])


@pytest.mark.expects_log("malformed message", "closed the connection")
def test_a_peer_with_a_hostile_notice_loses_its_link():
    sides = own, other = linked_sides("tcp")
    engine = own.instance._engine
    odd = ["two\nlines", None, "pull_blocks", "tcp", 0, 0, 0, 0]
    body = msgspec.msgpack.encode(["ended", [odd]])
    engine.links.notify(engine.links.get(other.id, "test"), body)
    eventually(lambda: not other.instance.describe_links())
    finalize(*sides)


@pytest.mark.parametrize("operation", ["pull_resharded", "push_resharded"])
def test_each_rank_has_a_span_in_the_callers_trace(sides, spans, operation):
    own, other = sides
    local, remote = KvCache(own, key=None), KvCache(other)
    keys, blocks = [other.blocks_key()], [[0, 1]]
    with spans.current() as parent:
        if operation == "pull_resharded":
            own.manager.pull_resharded(keys, local.cache, blocks, [2, 3], 8, **NAMED)
        else:
            own.manager.push_resharded(keys, local.cache, [2, 3], blocks, 8, **NAMED)
    (span,) = spans.ended()
    assert (span.name, span.attributes["llm_datadist.blocks"]) == (operation, 2)
    assert span.parent.span_id == parent.get_span_context().span_id
    assert remote.id


def test_ranks_on_other_threads_belong_to_the_callers_trace(sides, spans):
    own, other = sides
    local = KvCache(own, key=None)
    for rank in range(2):
        KvCache(other, tp=2, rank=rank, key=rank)
    keys = [other.blocks_key(rank) for rank in range(2)]
    with spans.current() as parent:
        own.manager.pull_resharded(keys, local.cache, [[0, 1]] * 2, [2, 3], 8, **NAMED)
    parents = {span.parent.span_id for span in spans.ended()}
    assert len(spans.ended()) == 2
    assert parents == {parent.get_span_context().span_id}


@pytest.mark.parametrize("operation", ["pull_blocks", "pull_resharded"])
def test_an_error_names_the_request(sides, spans, operation):
    own, other = sides
    local, absent = KvCache(own, key=None), other.blocks_key(99)
    with failing("LLM_KV_CACHE_NOT_EXIST", operation, "(request cmpl-7)") as caught:
        if operation == "pull_blocks":
            own.manager.pull_blocks(absent, local.cache, [1], [3], **NAMED)
        else:
            own.manager.pull_resharded([absent], local.cache, [[0]], [2], 4, **NAMED)
    assert caught.value.request_id == "cmpl-7"
    assert str(caught.value).count("cmpl-7") == 1
    (span,) = spans.ended()
    assert span.attributes["error.type"] == "LLM_KV_CACHE_NOT_EXIST"


def test_an_error_that_no_transfer_has_raised_names_the_request(sides):
    own, other = sides
    local = KvCache(own, key=None)
    KvCache(other, described=False)
    with failing("LLM_PARAM_INVALID", "pull_resharded", "without a layout") as caught:
        own.manager.pull_resharded([other.blocks_key()], local.cache, [[0]], [2], 4, **NAMED)
    assert caught.value.request_id == "cmpl-7"
    assert str(caught.value).endswith("(request cmpl-7)")


@pytest.mark.parametrize("operation", CALLS)
def test_a_request_id_that_cannot_be_printed_is_refused(sides, monkeypatch, operation):
    own, other = sides
    monkeypatch.setitem(NAMED, "request_id", "two\nlines")
    if operation.endswith("blocks"):
        local, remote = own.blocks(1), other.blocks(2, key=0)
    else:
        local, remote = own.slots(1, tensors=2), other.slots(2, tensors=2)
    with pytest.raises(LLMException, match=f"^{operation} failed .*request_id has 9 characters"):
        CALLS[operation](own.manager, local, remote)


def test_asyncio_keeps_the_trace_of_the_task(tmp_path, spans):
    async def main():
        directory = tmp_path / "nodes"
        async with (
            Node("prefill", ANY_PORT, directory=directory) as prefill,
            Node("decode", directory=directory) as decode,
        ):
            prefill.register("kv", [pattern((8, 64), 1).copy()])
            decode.register("kv", [pattern((8, 64), 2).copy()])
            peer = await decode.connect("prefill")
            with spans.current() as parent:
                await peer.pull("kv", [1], [2], **NAMED)
                await peer.push("kv", [3], [4], **NAMED)
            await peer.pull("kv", [1], [2])
            return parent.get_span_context().span_id

    parent_id = asyncio.run(main())
    assert [span.name for span in spans.ended()] == ["pull_blocks", "push_blocks"]
    assert {span.parent.span_id for span in spans.ended()} == {parent_id}
