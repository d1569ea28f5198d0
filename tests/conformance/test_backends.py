"""Every backend keeps the contract of `_backends/base.py`, with processes and with threads."""

import pytest

from llm_datadist._backends.fault_injection.decorator import FaultBackend
from llm_datadist._backends.fault_injection.policy import FaultPolicy
from llm_datadist._backends.host import HostBackend
from llm_datadist._backends.tcp import TcpBackend
from llm_datadist.testing.conformance import CHECKS, NEEDS_PROCESS, run_check
from support.nixl_backends import NEEDS_NIXL, make_nixl


def make_host(node):
    return HostBackend(node, (), any_user=False)


def make_tcp(node):
    return TcpBackend()


def make_fault_over_host(node):
    return FaultBackend(HostBackend(node, (), any_user=False), node, FaultPolicy())


BACKENDS = {
    "host": (make_host, ("process", "thread")),
    "tcp": (make_tcp, ("process", "thread")),
    "fault over host": (make_fault_over_host, ("process",)),  # by a policy that never strikes
    "nixl": (make_nixl, ("thread",)),  # as processes, over each transport: test_nixl.py
}
MARKS = {"nixl": NEEDS_NIXL}
CASES = [
    pytest.param(backend, kind, check, marks=MARKS.get(backend, ()))
    for backend, (_, kinds) in BACKENDS.items()
    for kind in kinds
    for check in CHECKS
    if kind == "process" or check not in NEEDS_PROCESS
]


@pytest.mark.parametrize(("backend", "kind", "check"), CASES)
def test_backend_keeps_the_contract(backend, kind, check):
    run_check(check, BACKENDS[backend][0], kind)
