"""Runs the tests of a GPU's memory where there is no GPU, with a driver that stands in for one."""

import json

import pytest

from support.fake_cuda import run, run_tests
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
@pytest.mark.parametrize("path", sorted(HERE.glob("test_gpu_*.py")), ids=lambda path: path.stem)
def test_links_of_one_host(path):
    """Strict: nothing but the driver can read the memory."""
    passed, output = run_tests([str(path)], 110)
    assert passed, output
    assert "skipped" not in output


@pytest.mark.slow
def test_order_and_ways_to_copy():
    passed, output = run_tests([str(HERE / "test_streams.py"), str(HERE / "test_copies.py")], 110)
    assert passed, output
    assert "skipped" not in output


@pytest.mark.slow
def test_the_check_of_a_machine_with_a_gpu_runs_to_its_end(tmp_path):
    """`make gpu-check`: with few bytes, and one test for all."""
    one = str(HERE / "test_gpu_links.py::test_one_block")
    check = str(HERE.parents[1] / "tools" / "gpu_check.py")
    passed, output = run([check, "--quick", "--tests", one], 110, OUT=str(tmp_path))
    assert passed, output
    result = json.loads((tmp_path / "gpu-check.json").read_text())
    assert result["tests"] == {"passed": 1, "failed": [], "skipped": {}, "status": 0}
    left_out = {each["left_out"] for each in result["figures"] if "left_out" in each}
    assert not [why for why in left_out if why.startswith("failed")], output
    assert len([each for each in result["figures"] if each.get("value")]) >= 10
    assert result["wrong_bytes"] == []
    assert set(result["paths"].values()) == {"cuda", "tcp"}
    assert "tests: 1 passed, 0 failed, 0 left out\nfigures: " in output
    assert "| pull one 32 KiB block, p50 |" in (tmp_path / "gpu-check.md").read_text()


@pytest.mark.slow
def test_the_stand_in_itself():
    passed, output = run_tests([str(HERE.parent / "fake_cuda")], 110)
    assert passed, output
    assert "skipped" not in output
