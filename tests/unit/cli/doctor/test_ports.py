"""Ports that are taken, not permitted, of another machine, or of outgoing connections."""

import socket

import pytest

from llm_datadist.cli.doctor.ports import domain_port, listen_ports
from support.restricted import findings_of


@pytest.fixture
def settings(tmp_path):
    """Settings of the kernel: the range of outgoing connections, and reserved ports."""

    def write(low, high, reserved=""):
        (tmp_path / "ip_local_port_range").write_text(f"{low}\t{high}\n")
        (tmp_path / "ip_local_reserved_ports").write_text(f"{reserved}\n")
        return tmp_path

    return write


@pytest.fixture
def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def of_port(address, settings):
    (found,) = listen_ports([address], settings)
    return found


def test_a_taken_port(settings):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = of_port(f"127.0.0.1:{port}", settings(1, 2))
    assert found.state == "problem"
    assert "Address already in use" in found.seen
    assert f"ss -ltnp 'sport = :{port}'" in found.remedy


def test_an_address_of_another_machine(settings):
    found = of_port("192.0.2.1:26000", settings(1, 2))
    assert found.state == "problem"
    assert "an IP address of this machine" in found.remedy


def test_a_host_name_cannot_be_listened_at(settings):
    assert of_port("no-such-host.invalid:26000", settings(1, 2)).state == "problem"


@pytest.mark.slow
def test_a_port_below_1024():
    drop = (
        "import os\nif os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "start = open('/proc/sys/net/ipv4/ip_unprivileged_port_start').read()"
    )
    call = "ports.listen_ports(['127.0.0.1:1'] if int(start) > 1 else [])"
    found = findings_of(call, drop)
    if not found:
        pytest.skip("every user may listen at every port here")
    assert found[0]["state"] == "problem"
    assert "1024 or more" in found[0]["remedy"]


@pytest.mark.parametrize("text", ["127.0.0.1", ":1", "127.0.0.1:", "127.0.0.1:65536", "a:b"])
def test_what_is_no_address(settings, text):
    found = of_port(text, settings(1, 2))
    assert found.state == "problem"
    assert "[v6]:port" in found.remedy


@pytest.mark.parametrize(
    ("low", "high", "reserved", "state"),
    [
        (0, 0, "", "ok"),
        (-1, 1, "", "warning"),
        (-1, 1, "{}", "ok"),
        (-1, 1, "1-2,{}-65535", "ok"),
        (-1, 1, "1-2", "warning"),
        (1, 2, "", "ok"),
    ],
)
def test_the_range_of_outgoing_connections(settings, free_port, low, high, reserved, state):
    """`low` and `high` are relative to the port."""
    bounds = (free_port + low, free_port + high) if low or high else (1, 2)
    found = of_port(f"127.0.0.1:{free_port}", settings(*bounds, reserved.format(free_port)))
    assert found.state == state
    if state == "warning":
        assert f"ip_local_reserved_ports={free_port}" in found.remedy


def test_settings_that_cannot_be_read(tmp_path, free_port):
    assert of_port(f"127.0.0.1:{free_port}", tmp_path).state == "ok"


def test_port_zero_is_never_taken(settings):
    found = of_port("127.0.0.1:0", settings(1, 2))
    assert "chooses a free port" in found.seen


@pytest.mark.parametrize("text", ["x", "1", "65521"])
def test_the_variable_of_domains_is_no_port(monkeypatch, text):
    monkeypatch.setenv("HCCL_IF_BASE_PORT", text)
    (found,) = domain_port()
    assert found.state == "problem"
    assert "HCCL_IF_BASE_PORT" in found.seen


def test_the_port_of_domains_is_taken(monkeypatch, settings):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HCCL_IF_BASE_PORT", str(server.getsockname()[1]))
        (found,) = domain_port(settings(1, 2))
    assert found.state == "problem"
    assert "Address already in use" in found.seen


def test_the_port_of_domains_is_one_of_outgoing_connections(monkeypatch, settings, free_port):
    monkeypatch.setenv("HCCL_IF_BASE_PORT", str(free_port))
    (found,) = domain_port(settings(1024, 65535))
    assert found.state == "warning"
