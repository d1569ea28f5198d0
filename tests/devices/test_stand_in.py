"""Runs the tests of a GPU's memory where there is no GPU, with a driver that stands in for one."""

import pytest

from support.fake_cuda import run_tests
from support.gpu import HERE, STAND_IN, load
from support.nixl_backends import NEEDS_NIXL

pytestmark = pytest.mark.skipif(bool(STAND_IN), reason="this is that process")


@pytest.fixture(autouse=True)
def no_gpu():
    if load() is not None:
        pytest.skip("there is a GPU")


@NEEDS_NIXL
def test_with_an_engine():
    """UCX has no GPU to read: to it this is host memory, so that it must be readable."""
    passed, output = run_tests(
        [str(HERE / "test_device_memory.py")],
        110,
        FAKE_CUDA_READABLE="1",
        UCX_MODULES="^ib,cuda",  # UCX's own module for GPUs must not take it for a driver
    )
    assert passed, output
    assert "skipped" not in output


@pytest.mark.slow
def test_links_of_one_host():
    """Strict: nothing but the driver can read the memory."""
    passed, output = run_tests([str(each) for each in sorted(HERE.glob("test_gpu_*.py"))], 110)
    assert passed, output
    assert "skipped" not in output


@pytest.mark.slow
def test_the_stand_in_itself():
    passed, output = run_tests([str(HERE.parent / "fake_cuda")], 110)
    assert passed, output
    assert "skipped" not in output
