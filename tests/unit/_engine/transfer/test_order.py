"""`after` where there is no GPU: a clear error, and nothing is moved."""

import pytest

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
