"""Status codes and exceptions (api.md 1.1, 2, 7.9)."""

import pickle

import numpy as np
import pytest

from llm_datadist._errors import (
    FIRST_GENERATION_STATUSES,
    Fault,
    LLMException,
    LLMStatusCode,
    Status,
    fail,
    restate,
)

NUMBERS = {
    "LLM_SUCCESS": 0,
    "LLM_FAILED": 0xFFFFFFFF,
    "LLM_WAIT_PROCESS_TIMEOUT": 0x5010B001,
    "LLM_KV_CACHE_NOT_EXIST": 0x5010B002,
    "LLM_PARAM_INVALID": 0x5010B005,
    "LLM_NOT_YET_LINK": 0x5010B007,
    "LLM_ALREADY_LINK": 0x5010B008,
    "LLM_LINK_FAILED": 0x5010B009,
    "LLM_UNLINK_FAILED": 0x5010B00A,
    "LLM_NOTIFY_PROMPT_UNLINK_FAILED": 0x5010B00B,
    "LLM_CLUSTER_NUM_EXCEED_LIMIT": 0x5010B00C,
    "LLM_PROCESSING_LINK": 0x5010B00D,
    "LLM_DEVICE_OUT_OF_MEMORY": 0x5010B00E,
    "LLM_EXIST_LINK": 0x5010B018,
    "LLM_FEATURE_NOT_ENABLED": 0x5010B019,
    "LLM_TIMEOUT": 0x5010B01A,
    "LLM_LINK_BUSY": 0x5010B01B,
    "LLM_OUT_OF_MEMORY": 0x5010B01C,
    "LLM_UNKNOWN_ERROR": -1,
}
PRIVATE = {
    "LLM_REPEAT_REQUEST",
    "LLM_REQUEST_ALREADY_COMPLETED",
    "LLM_ENGINE_FINALIZED",
    "LLM_PREFIX_ALREADY_EXIST",
    "LLM_PREFIX_NOT_EXIST",
    "LLM_SEQ_LENOVERLIMIT",
    "LLM_NO_FREE_BLOCK",
    "LLM_BLOCKS_OUT_OF_MEMORY",
    "LLM_DEVICE_MEM_ERROR",
    "LLM_SUSPECT_REMOTE_ERROR",
}


@pytest.mark.parametrize(("name", "number"), NUMBERS.items())
def test_status_codes_have_the_documented_numbers(name, number):
    """api.md checklist 2."""
    assert LLMStatusCode[name] == number
    assert LLMStatusCode(number).name == name


def test_every_status_code_exists_with_a_number_of_its_own():
    """api.md checklist 2: callers compare against many of them at import time."""
    assert {*LLMStatusCode.__members__} == {*NUMBERS, *PRIVATE}
    assert len({int(code) for code in LLMStatusCode}) == len(NUMBERS) + len(PRIVATE)


@pytest.mark.parametrize("code", LLMStatusCode)
def test_a_status_code_prints_with_its_class(code):
    """api.md checklist 61."""
    text = f"LLMStatusCode.{code.name}"
    assert (str(code), repr(code), f"{code}", "%s" % code) == (text,) * 4  # noqa: UP031
    assert str([code]) == f"[{text}]"


def test_a_status_code_formats_as_a_number_where_a_format_asks():
    assert f"{LLMStatusCode.LLM_TIMEOUT:#x}" == "0x5010b01a"
    assert f"{LLMStatusCode.LLM_SUCCESS:d}" == "0"
    assert f"{LLMStatusCode.LLM_SUCCESS:>28}" == "   LLMStatusCode.LLM_SUCCESS"


def test_an_exception_is_a_runtime_error_and_nothing_else():
    """api.md checklist 4."""
    assert LLMException.__mro__ == (
        LLMException,
        RuntimeError,
        Exception,
        BaseException,
        object,
    )


def test_an_exception_without_a_status_is_an_unknown_error():
    """api.md checklist 4."""
    error = LLMException("text", 3)
    assert error.status_code is LLMStatusCode.LLM_UNKNOWN_ERROR
    assert error.args == ("text", 3)
    assert (error.operation, error.cluster_id, error.faults) == (None, None, ())
    assert LLMException().args == ()


def test_an_exception_carries_its_status():
    """api.md checklist 4."""
    error = LLMException("text", status_code=LLMStatusCode.LLM_TIMEOUT)
    assert error.status_code is LLMStatusCode.LLM_TIMEOUT
    assert str(error) == "text"
    assert repr(error) == "LLMException('text', status_code=LLMStatusCode.LLM_TIMEOUT)"


@pytest.mark.parametrize("status", [0.0, True, None, "LLM_TIMEOUT"])
def test_a_status_must_be_an_integer(status):
    """api.md checklist 5."""
    with pytest.raises(TypeError, match="must be LLMStatusCode or int"):
        LLMException("text", status_code=status)
    with pytest.raises(TypeError, match="must be LLMStatusCode or int"):
        Status(status)


@pytest.mark.parametrize("number", [0x5010B01A, np.int64(0x5010B01A)])
def test_a_status_may_be_given_by_its_number(number):
    """api.md checklist 4."""
    assert LLMException("text", status_code=number).status_code is LLMStatusCode.LLM_TIMEOUT
    assert Status(number).status_code is LLMStatusCode.LLM_TIMEOUT


@pytest.mark.parametrize("number", [1, -7, 2**70])
def test_a_number_without_a_name_is_kept(number):
    """api.md checklist 4: code that raises its own numbers through the class."""
    error = LLMException("text", status_code=number)
    for twin in (error, pickle.loads(pickle.dumps(error))):
        assert twin.status_code == number
        assert repr(twin) == f"LLMException('text', status_code={number})"
    assert Status(number).status_code == number
    assert Status(number) == Status(number)
    assert not Status(number).is_ok()


def test_a_failure_names_operation_status_peer_problem_and_remedy():
    fault = Fault(cluster_id=7, cache_id=1, tensor_index=0, block=3, addr=4096, size=64)
    error = fail(
        LLMStatusCode.LLM_SUSPECT_REMOTE_ERROR,
        "pull_blocks",
        "block 3 cannot be read",
        "let the peer remap it",
        cluster_id=7,
        faults=[fault],
    )
    assert str(error) == (
        "pull_blocks failed [LLM_SUSPECT_REMOTE_ERROR], peer cluster 7: block 3 cannot be read; "
        "let the peer remap it"
    )
    assert error.status_code is LLMStatusCode.LLM_SUSPECT_REMOTE_ERROR
    assert (error.operation, error.cluster_id, error.faults) == ("pull_blocks", 7, (fault,))


def test_a_failure_without_a_peer_names_none_and_cluster_0_is_a_peer():
    assert str(fail(LLMStatusCode.LLM_FAILED, "init", "a", "b")) == "init failed [LLM_FAILED]: a; b"
    assert "peer cluster 0" in str(fail(LLMStatusCode.LLM_FAILED, "x", "a", "b", cluster_id=0))


def test_an_exception_crosses_processes_whole():
    fault = Fault(cluster_id=7, cache_id=None, tensor_index=None, addr=1, size=2)
    error = fail(LLMStatusCode.LLM_TIMEOUT, "x", "a", "b", cluster_id=7, faults=[fault])
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.args, copy.status_code, copy.faults) == (error.args, error.status_code, (fault,))
    assert (copy.operation, copy.cluster_id) == ("x", 7)


def test_a_fault_is_a_frozen_value_that_shows_its_fields():
    fault = Fault(cluster_id=1, cache_id=2, tensor_index=3, slot=4, addr=5, size=6)
    assert fault == Fault(cluster_id=1, cache_id=2, tensor_index=3, slot=4, addr=5, size=6)
    assert len({fault, fault}) == 1
    assert (fault.slot, fault.block) == (4, None)
    for field in ("cluster_id=1", "cache_id=2", "tensor_index=3", "slot=4", "addr=5", "size=6"):
        assert field in repr(fault)
    with pytest.raises(AttributeError):
        fault.addr = 9


@pytest.mark.parametrize("code", LLMStatusCode)
def test_a_status_is_ok_only_for_success(code):
    assert Status(code).is_ok() is (code is LLMStatusCode.LLM_SUCCESS)
    assert Status(code).status_code is code
    assert repr(Status(code)) == f"Status({code})"


def test_statuses_are_equal_by_value():
    success, timeout = LLMStatusCode.LLM_SUCCESS, LLMStatusCode.LLM_TIMEOUT
    assert Status(success) == Status(success)
    assert Status(success) != Status(timeout)
    assert Status(success) != success
    assert len({Status(success), Status(success)}) == 1


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("LLM_TIMEOUT", "LLM_WAIT_PROCESS_TIMEOUT"),
        ("LLM_OUT_OF_MEMORY", "LLM_DEVICE_OUT_OF_MEMORY"),
        ("LLM_FAILED", "LLM_FAILED"),
    ],
)
def test_the_first_generation_has_other_statuses(status, expected):
    """api.md checklist 62. In the text, too; everything else stays."""
    error = fail(LLMStatusCode[status], "pull_cache", "[LLM_TIMEOUT] x", "retry", cluster_id=7)
    restate(error, {})
    assert error.status_code.name == status
    restate(error, FIRST_GENERATION_STATUSES)
    assert error.status_code.name == expected
    assert str(error) == f"pull_cache failed [{expected}], peer cluster 7: [LLM_TIMEOUT] x; retry"
    assert (error.operation, error.cluster_id) == ("pull_cache", 7)
