"""Limits are set in a process, whose findings name the remedy."""

import pytest

from llm_datadist.cli.doctor.limits import descriptors, locked_memory, sizes, stack
from support.restricted import findings_of

pytestmark = pytest.mark.slow


def limited(call, **limits):
    """Findings of a check under soft limits, by the names of the resource module."""
    lines = [
        f"import resource\nhard = resource.getrlimit(resource.RLIMIT_{name})[1]\n"
        f"resource.setrlimit(resource.RLIMIT_{name}, ({value}, hard))"
        for name, value in limits.items()
    ]
    return findings_of(call, "\n".join(lines))


@pytest.mark.parametrize(("limit", "state"), [(100, "problem"), (256, "warning"), (1024, "ok")])
def test_open_files(limit, state):
    (found,) = limited("limits.descriptors()", NOFILE=limit)
    assert found["state"] == state
    assert str(limit) in found["seen"]
    assert ("ulimit -n" in found["remedy"]) is (state != "ok")


@pytest.mark.parametrize("has_rdma", [False, True])
def test_locked_memory_matters_to_rdma_only(tmp_path, has_rdma):
    if has_rdma:
        (tmp_path / "mlx5_0").mkdir()
    call = f"limits.locked_memory(__import__('pathlib').Path({str(tmp_path)!r}))"
    (found,) = limited(call, MEMLOCK=65536)
    assert found["state"] == ("warning" if has_rdma else "ok")
    assert "0.0625 MiB" in found["seen"]
    assert ("ulimit -l" in found["remedy"]) is has_rdma


def test_a_small_stack():
    (found,) = limited("limits.stack()", STACK=128 << 10)
    assert found["state"] == "warning"
    assert "ulimit -s" in found["remedy"]


def test_address_space_and_file_sizes():
    space, file = limited("limits.sizes()", AS=1 << 31, FSIZE=1 << 20)
    assert (space["subject"], space["state"]) == ("address space", "warning")
    assert "ulimit -v" in space["remedy"]
    assert (file["subject"], file["state"]) == ("file size", "problem")
    assert "ulimit -f" in file["remedy"]


def test_without_limits_all_is_well(monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    for check in (descriptors, locked_memory, stack, sizes):
        assert {(found.state, found.seen) for found in check()} == {("ok", "unlimited")}
