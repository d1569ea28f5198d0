"""`after` where there is no GPU: a clear error, and nothing is moved."""

import errno

import pytest

from llm_datadist._backends.outcomes import Code, Outcome
from llm_datadist._engine.transfer import order
from llm_datadist._errors import LLMStatusCode
from support.instances import Side, failing, finalize


@pytest.fixture(params=["auto", "cpu"])
def side(request):
    one = Side(1, "host", device=request.param)
    yield one
    finalize(one)


def test_after_needs_a_gpu(side):
    source, target = side.blocks(seed=3), side.blocks()
    before = target.data.copy()
    calls = side.manager
    with failing("LLM_FEATURE_NOT_ENABLED", "swap_blocks", "after"):
        calls.swap_blocks(source.cache, target.cache, {0: 1}, after=0)
    with failing("LLM_FEATURE_NOT_ENABLED", "copy_blocks", "after"):
        calls.copy_blocks(target.cache, {0: [1]}, after=0)
    assert (target.data == before).all()


def test_after_is_a_stream_or_an_event(side):
    source, target = side.blocks(seed=3), side.blocks()
    with pytest.raises(TypeError, match="after must be a CUDA stream or event"):
        side.manager.swap_blocks(source.cache, target.cache, {0: 1}, after="stream")
    side.manager.swap_blocks(source.cache, target.cache, {0: 1}, after=None)
    assert (target.data[:, 1] == source.data[:, 0]).all()


def test_a_wait_without_a_thread_says_what_helps():
    error = order._failure("pull_blocks", Outcome(Code.SYSTEM, errno.EUSERS))
    assert error.status_code is LLMStatusCode.LLM_FAILED
    assert "64 threads wait for GPUs" in str(error)
    assert "make fewer calls" in str(error)
