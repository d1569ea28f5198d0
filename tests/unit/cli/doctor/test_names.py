"""The host's own name: missing, loopback, or a name server that does not answer."""

import socket
import threading

from llm_datadist.cli.doctor.names import own_name


def test_a_name_that_does_not_exist():
    (found,) = own_name("no-such-host.invalid")
    assert found.state == "warning"
    assert "cannot be resolved" in found.seen
    assert "/etc/hosts" in found.remedy


def test_a_malformed_name():
    (found,) = own_name("a" * 300)
    assert found.state == "warning"
    assert "cannot be resolved" in found.seen


def test_a_name_of_loopback():
    (found,) = own_name("localhost")
    assert found.state == "warning"
    assert "loopback" in found.seen
    assert "/etc/hosts" in found.remedy


def test_a_name_server_that_does_not_answer(monkeypatch):
    answer = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer.wait(10) and [])
    (found,) = own_name("localhost", seconds=0.01)
    answer.set()
    assert found.state == "warning"
    assert "did not answer within 0.01 s" in found.seen
    assert "/etc/resolv.conf" in found.remedy


def test_an_address_of_a_network():
    (found,) = own_name("192.0.2.1")
    assert found.state == "ok"
    assert "192.0.2.1 is 192.0.2.1" in found.seen
