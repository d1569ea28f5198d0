"""Every backend keeps the contract of `_backends/base.py`, with processes and with threads."""

import pytest

from llm_datadist._backends.host import HostBackend
from llm_datadist._backends.tcp import TcpBackend
from llm_datadist.testing.conformance import CHECKS, NEEDS_PROCESS, run_check


def make_host(node):
    return HostBackend(node, ())


def make_tcp(node):
    return TcpBackend()


BACKENDS = {"host": make_host, "tcp": make_tcp}
CASES = [
    (kind, check)
    for kind in ("process", "thread")
    for check in CHECKS
    if kind == "process" or check not in NEEDS_PROCESS
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("kind", "check"), CASES)
def test_backend_keeps_the_contract(backend, kind, check):
    run_check(check, BACKENDS[backend], kind)
