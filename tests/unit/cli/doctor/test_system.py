"""Versions, kernel and cores."""

import os

import pytest

from llm_datadist.cli.doctor.system import cores, kernel, versions


def test_versions():
    (found,) = versions()
    assert found.state == "ok"
    assert "numpy" in found.seen


@pytest.mark.parametrize(
    ("release", "state"),
    [("4.17.9-x", "problem"), ("3.10.0", "problem"), ("4.18.0", "ok"), ("6.1", "ok"), ("?", "ok")],
)
def test_an_old_kernel_is_a_problem(release, state):
    (found,) = kernel(release)
    assert found.state == state
    assert release in found.seen
    assert ("4.18 or later" in found.remedy) is (state == "problem")


@pytest.fixture
def one_core():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("one_core")
def test_one_core_is_not_enough(tmp_path):
    (found,) = cores(tmp_path / "none")
    assert found.state == "warning"
    assert "1 usable of" in found.seen
    assert "taskset" in found.remedy


@pytest.mark.parametrize(
    ("text", "limited"),
    [("150000 100000\n", "1.5"), ("50000 100000", "0.5"), ("max 100000\n", None), ("", None)],
)
def test_the_limit_of_the_cgroup_counts(tmp_path, text, limited):
    quota = tmp_path / "cpu.max"
    quota.write_text(text)
    (found,) = cores(quota)
    assert ("cgroup" in found.seen) is (limited is not None)
    if limited is not None:
        assert found.state == "warning"
        assert limited in found.seen
        assert "CPU limit" in found.remedy
