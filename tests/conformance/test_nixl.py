"""NIXL keeps the contract over each transport that UCX has for host memory."""

import pytest

from llm_datadist.testing import conformance
from support.nixl_backends import NEEDS_NIXL, make_nixl

FAILURES = {
    name
    for name in conformance.CHECKS
    if name.startswith(("reads", "writes", "frozen", "killed", "bad_page", "dropped"))
}
CASES = [
    *(("tcp", check) for check in conformance.CHECKS),
    # Shared memory, where the peer's memory is read directly; NIXL needs TCP beside it.
    *(("shm,cma,self,tcp", check) for check in sorted(FAILURES)),
]


@NEEDS_NIXL
@pytest.mark.slow
@pytest.mark.parametrize(("transport", "check"), CASES)
def test_nixl_keeps_the_contract(monkeypatch, transport, check):
    monkeypatch.setenv("UCX_TLS", transport)
    monkeypatch.setenv("NIXL_LOG_LEVEL", "FATAL")
    conformance.run_check(check, make_nixl, "process")
