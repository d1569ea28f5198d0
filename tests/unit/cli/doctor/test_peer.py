"""A peer that is not there, does not let this end link, or moves blocks on a slower path."""

import contextlib
import socket
import threading

import pytest

from llm_datadist import LLMRole
from llm_datadist.cli.doctor.peer import peer
from support.setup import started

SECRET = "LLM_DATADIST_SECRET"


@pytest.fixture
def instance(monkeypatch):
    """Start instances at ports that the system chooses."""
    made = []
    monkeypatch.delenv(SECRET, raising=False)

    def start(**options):
        made.append(started(1, **options))
        return ":".join(map(str, made[-1].listen_address))

    yield start
    for each in made:
        each.finalize()


def judged(address, **options):
    """The findings, the last one first."""
    return list(peer(address, timeout_s=30.0, **options))[::-1]


def test_a_good_peer(instance):
    answer, path, port, name = judged(instance())
    assert {each.state for each in (answer, port, name)} == {"ok"}
    assert "cluster 1 answers" in answer.seen
    assert "linked to cluster 1, blocks move over" in path.seen


def test_a_slower_path_within_the_host(instance):
    _, path, *_ = judged(instance(transfer_backend="tcp"))
    assert path.state == "warning"
    assert "over tcp" in path.seen
    assert "same-host reads" in path.remedy


@pytest.mark.parametrize("address", ["127.0.0.1", ":1", "127.0.0.1:0", "127.0.0.1:65536", "a:b"])
def test_what_is_no_address(address):
    (found,) = judged(address)
    assert found.state == "problem"
    assert "host:port" in found.remedy


def test_a_name_that_does_not_exist():
    (found,) = judged(f"{'a' * 300}:26000")
    assert (found.subject, found.state) == ("peer's name", "problem")
    assert "/etc/hosts" in found.remedy


def test_nothing_listens(instance):
    with socket.socket() as sock:  # bound, and not listening
        sock.bind(("127.0.0.1", 0))
        found, name = judged(f"127.0.0.1:{sock.getsockname()[1]}")
    assert name.state == "ok"
    assert (found.subject, found.state) == ("peer's port", "problem")
    assert "Connection refused" in found.seen
    assert "start the peer" in found.remedy


def test_packets_are_dropped():
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # a full backlog: further requests to connect are not answered
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        address = f"127.0.0.1:{server.getsockname()[1]}"
        *_, found = peer(address, timeout_s=0.2)
    assert (found.subject, found.state) == ("peer's port", "problem")
    assert "no answer" in found.seen
    assert "firewall" in found.remedy


@pytest.fixture
def stranger():
    """A program that answers each connection with these bytes, or with nothing."""
    with contextlib.ExitStack() as stack:

        def start(data):
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def serve():
                with contextlib.suppress(OSError):
                    while True:
                        sock, _ = server.accept()
                        stack.callback(sock.close)
                        sock.sendall(data)

            thread = threading.Thread(target=serve)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown, socket.SHUT_RDWR)
            return f"127.0.0.1:{server.getsockname()[1]}"

        yield start


def test_another_program_listens(stranger):
    found, *_ = judged(stranger(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    assert (found.subject, found.state) == ("peer's link", "problem")
    assert "no llm-datadist of this version" in found.seen
    assert "check address and versions" in found.remedy


def test_another_program_is_silent(stranger):
    *_, found = peer(stranger(b""), timeout_s=0.2)
    assert (found.subject, found.state) == ("peer's link", "problem")
    assert "no answer from what listens there" in found.seen
    assert "not frozen" in found.remedy


@pytest.mark.expects_log("protocol version")
def test_another_version_of_the_protocol(instance, monkeypatch):
    monkeypatch.setattr("llm_datadist._links.admission.PROTOCOL_VERSION", 99)
    found, *_ = judged(instance())
    assert found.state == "problem"
    assert "the acceptor has protocol version 99" in found.seen
    assert "the same llm-datadist on both sides" in found.remedy


@pytest.mark.expects_log("secret")
@pytest.mark.parametrize("own", [None, "another"])
def test_another_secret(instance, monkeypatch, own):
    address = instance(link_secret="the peer's")
    if own is not None:
        monkeypatch.setenv(SECRET, own)
    found, *_ = judged(address)
    assert found.state == "problem"
    assert "secret" in found.seen
    assert "the same link_secret on both sides" in found.remedy


@pytest.mark.expects_log("first-generation")
def test_the_other_generation(instance):
    address = instance(enable_cache_manager=False, role=LLMRole.PROMPT)
    found, *_ = judged(address)
    assert found.state == "problem"
    assert "first-generation mode" in found.seen
    answer, *_ = judged(address, first_generation=True)
    assert answer.state == "ok"
