"""What a transfer says of the request that it is for: in spans, errors and log lines."""

import pytest

from llm_datadist import LLMException
from llm_datadist._backends.outcomes import Code, Outcome
from llm_datadist._errors import fail
from llm_datadist._registry import Resolved
from llm_datadist._tracing import request_trace
from llm_datadist._types.refs import NO_REF
from support.attempts import BLOCKS, FOUND, REPLACED, TENSORS, UNIT, Directory, Link, S, World
from support.spans import spans

__all__ = ["spans"]

MOVED = TENSORS * BLOCKS * UNIT


def for_a_request():
    return request_trace("pull_blocks", "cmpl-1", range(BLOCKS))


def test_a_transfer_has_one_span_also_when_it_is_repeated(spans, caplog):
    caplog.set_level("DEBUG", "llm_datadist")
    world = World(Link(Directory(Resolved(REPLACED, 0, NO_REF), known=FOUND), Outcome(Code.STALE)))
    world.run(trace=for_a_request())
    (span,) = spans.ended()
    assert span.attributes["llm_datadist.bytes"] == MOVED
    assert span.attributes["llm_datadist.path"] == "of host memory"
    assert span.attributes["network.peer.port"] == 5
    (record,) = caplog.records
    assert record.getMessage() == "pull_blocks, request cmpl-1 is repeated: STALE"


def test_a_lookup_that_is_repeated_is_logged(caplog):
    caplog.set_level("DEBUG", "llm_datadist")
    gone = fail(S.LLM_KV_CACHE_NOT_EXIST, "pull_blocks", "gone", "look")
    World(Link(Directory(FOUND, known=gone))).run()
    (record,) = caplog.records
    assert record.getMessage() == f"pull_blocks is repeated: {gone}"


def test_a_failure_names_the_request(spans):
    world = World(Link(Directory(known=FOUND), Outcome(Code.TIMEOUT)))
    error = world.fails(S.LLM_TIMEOUT, "pull_blocks failed [LLM_TIMEOUT]", trace=for_a_request())
    assert str(error).endswith(" (request cmpl-1)")
    assert error.request_id == "cmpl-1"
    (span,) = spans.ended()
    assert span.attributes["error.type"] == "LLM_TIMEOUT"
    assert span.attributes["llm_datadist.bytes"] == 0


def test_a_transfer_without_a_request_has_no_span(spans):
    World(Link(Directory(known=FOUND))).run()
    world = World(Link(Directory(known=FOUND), Outcome(Code.TIMEOUT)))
    assert world.fails(S.LLM_TIMEOUT).request_id is None
    assert spans.ended() == []


def test_no_link(spans):
    world = World(Link(Directory(known=FOUND)))

    def no_link(cluster_id, operation):
        raise fail(S.LLM_NOT_YET_LINK, operation, "no link", "link")

    world.links.get = no_link
    with pytest.raises(LLMException, match="request cmpl-1"):
        world.run(trace=for_a_request())
    (span,) = spans.ended()
    assert span.attributes["llm_datadist.path"] == "none"


@pytest.mark.expects_log("slow transfer")
def test_the_slow_transfer_log_names_the_request(caplog):
    World(Link(Directory(known=FOUND)), slow_ms=0).run(trace=for_a_request())
    (record,) = caplog.records
    assert "slow transfer: pull_blocks, request cmpl-1, peer cluster 2 at" in record.getMessage()
