"""Each outcome of the data plane has one status, whose text names peer, problem and remedy."""

import errno

import numpy as np
import pytest

from llm_datadist._backends.outcomes import Code, Outcome
from llm_datadist._engine.transfer.errors import Failure, complete, failure
from llm_datadist._errors import Fault, LLMStatusCode
from llm_datadist._plan import Plan

S = LLMStatusCode
PLAN = Plan(np.array((0x1000, 0x2000, 64), np.uint64), 64)
FAULT = Fault(cluster_id=2, cache_id=5, tensor_index=1, block=3, addr=0x2000, size=64)


def explained(outcome, **more):
    known = {
        "operation": "pull_blocks",
        "cluster_id": 2,
        "peer": "cluster 2 at 192.0.2.1",
        "timeout_ms": 1000,
        "plan": PLAN,
        "remote_name": "cache 5 of the peer",
        "finalizing": False,
        "peer_alive": True,
    }
    error = failure(outcome, Failure(**known | more))
    assert "pull_blocks failed" in str(error)
    assert error.cluster_id == 2
    return error


@pytest.mark.parametrize(
    ("outcome", "status", "text"),
    [
        (Outcome(Code.TIMEOUT), S.LLM_TIMEOUT, "sync_kv_timeout = 1000 ms, 0 of 64 bytes"),
        (Outcome(Code.PEER_DEAD, errno.EPIPE), S.LLM_LINK_FAILED, "192.0.2.1 ended .*Broken pipe"),
        (Outcome(Code.CANCELLED), S.LLM_LINK_FAILED, "link again"),
        (Outcome(Code.GONE), S.LLM_KV_CACHE_NOT_EXIST, "cache 5 of the peer was unregistered"),
        (Outcome(Code.STALE), S.LLM_KV_CACHE_NOT_EXIST, "retry if it exists"),
        (Outcome(Code.LOCAL_GONE), S.LLM_KV_CACHE_NOT_EXIST, "the local cache was unregistered"),
        (Outcome(Code.DENIED, 0, 0), S.LLM_PARAM_INVALID, "at 0x2000, 64 bytes, is not registered"),
        (Outcome(Code.DENIED), S.LLM_PARAM_INVALID, "at an unknown address"),
        (Outcome(Code.NO_PATH), S.LLM_FAILED, "cannot be moved: unknown"),
        (Outcome(Code.SYSTEM, errno.EUSERS), S.LLM_FAILED, "has no thread"),
        (Outcome(Code.SYSTEM, errno.EPERM), S.LLM_FAILED, r"SYSTEM \(Operation not permitted\)"),
        (Outcome(Code.PROTOCOL), S.LLM_FAILED, "PROTOCOL, 0 of 64 bytes"),
    ],
)
def test_status_and_text(outcome, status, text):
    error = explained(outcome)
    assert error.status_code is status
    assert error.faults == ()
    with pytest.raises(type(error), match=text):
        raise error


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (Code.REMOTE_FAULT, S.LLM_SUSPECT_REMOTE_ERROR),
        (Code.LOCAL_FAULT, S.LLM_DEVICE_MEM_ERROR),
        (Code.CORRUPT, S.LLM_FAILED),
        (Code.TIMEOUT, S.LLM_TIMEOUT),
    ],
)
def test_memory_at_fault_is_named_whatever_ended_the_call(code, status):
    error = explained(Outcome(code), faults=(FAULT,) * 3)
    assert error.status_code is status
    assert len(error.faults) == 3
    assert "cache 5, tensor 1, block 3 (64 bytes at 0x2000) and 2 more" in str(error)


@pytest.mark.parametrize("code", [Code.GONE, Code.CLOSED])
def test_what_is_gone_with_its_peer_is_a_failed_link(code):
    assert explained(Outcome(code), peer_alive=False).status_code is S.LLM_LINK_FAILED


@pytest.mark.parametrize("code", [Code.CLOSED, Code.CANCELLED, Code.LOCAL_GONE, Code.GONE])
def test_the_own_end_goes_before_every_other_reason(code):
    error = explained(Outcome(code), finalizing=True, peer_alive=False)
    assert error.status_code is S.LLM_ENGINE_FINALIZED


@pytest.mark.parametrize("code", [Code.TIMEOUT, Code.REMOTE_FAULT, Code.DENIED])
def test_what_finalize_cannot_cause_keeps_its_status(code):
    expected = explained(Outcome(code)).status_code
    assert explained(Outcome(code), finalizing=True).status_code is expected


def test_success_means_every_byte():
    assert complete(Outcome(Code.OK, moved_bytes=64), PLAN).code == Code.OK
    assert complete(Outcome(Code.OK, moved_bytes=63), PLAN).code == Code.PROTOCOL
    assert complete(Outcome(Code.GONE, moved_bytes=63), PLAN).code == Code.GONE
