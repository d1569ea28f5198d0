"""TCP over loopback: slow, or not there."""

import pytest

from llm_datadist.cli.doctor.loopback import tcp_rate
from support.restricted import findings_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("least", "state"), [(0.0, "ok"), (1e6, "warning")])
def test_the_rate_is_compared(least, state):
    (found,) = tcp_rate(least)
    assert found.state == state
    assert "GB/s" in found.seen
    assert ("firewall" in found.remedy) is (state == "warning")


def test_loopback_is_down():
    (found,) = findings_of("loopback.tcp_rate()", namespaces=("--net",))
    assert found["state"] == "problem"
    assert "ip link set lo up" in found["remedy"]
