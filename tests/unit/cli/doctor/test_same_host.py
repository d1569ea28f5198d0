"""Reads between processes are tried, and denied on purpose."""

import errno

import pytest

from llm_datadist.cli.doctor import same_host
from llm_datadist.cli.doctor.same_host import pid_namespace
from support.restricted import findings_of


@pytest.mark.slow
def test_a_filter_of_the_sandbox():
    preparation = "from support.restricted import deny_reads; deny_reads(1)"
    (found,) = findings_of("same_host.same_host_reads()", preparation)
    assert found["state"] == "warning"
    assert "Operation not permitted: the sandbox (seccomp)" in found["seen"]
    assert "allow process_vm_readv" in found["remedy"]
    assert "TCP over loopback" in found["remedy"]


@pytest.mark.slow
def test_reads_work():
    (found,) = findings_of("same_host.same_host_reads()")
    assert found["state"] == "ok"


@pytest.mark.parametrize(
    ("number", "scope", "is_filtered", "seen", "remedy"),
    [
        (errno.ENOSYS, "", False, "seccomp", "process_vm_readv"),
        (errno.EPERM, "1", True, "seccomp", "process_vm_readv"),
        (errno.EPERM, "1", False, "ptrace_scope is 1", "kernel.yama.ptrace_scope=0"),
        (errno.EPERM, "3", False, "until the next boot", "kernel.yama.ptrace_scope=0"),
        (errno.EPERM, "0", False, "rights", "as one user"),
        (errno.EPERM, "", False, "rights", "SYS_PTRACE"),
    ],
)
def test_what_forbids_reads(number, scope, is_filtered, seen, remedy):
    found = same_host._forbidden(number, scope, is_filtered=is_filtered)
    assert seen in found[0]
    assert remedy in found[1]


@pytest.mark.slow
def test_a_namespace_of_its_own():
    (found,) = findings_of("same_host.pid_namespace()", namespaces=("--pid", "--fork"))
    assert found["state"] == "warning"
    assert "shareProcessNamespace" in found["remedy"]


def test_processes_cannot_be_started(monkeypatch):
    monkeypatch.setattr(same_host, "python", lambda _: ["/none/at/all"])
    (found,) = same_host.same_host_reads()
    assert found.state == "warning"
    assert "could not be started" in found.seen
    assert "ulimit -u" in found.remedy


@pytest.mark.parametrize(
    ("scope", "remedy"), [("1", "kernel.yama.ptrace_scope=0"), ("0", "as one user")]
)
def test_another_process_cannot_be_read(monkeypatch, tmp_path, scope, remedy):
    monkeypatch.setattr(same_host, "run_json", lambda _: {"errno": errno.EPERM, "own_errno": 0})
    path = tmp_path / "ptrace_scope"
    path.write_text(f"{scope}\n")
    (found,) = same_host.same_host_reads(path)
    assert found.state == "warning"
    assert "Operation not permitted" in found.seen
    assert remedy in found.remedy


def test_proc_is_not_mounted(tmp_path):
    (found,) = pid_namespace(tmp_path / "none")
    assert found.state == "warning"
    assert "mount /proc" in found.remedy
