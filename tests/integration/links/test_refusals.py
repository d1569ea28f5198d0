"""link_clusters where no link can come about: the status tells why, the reason tells what to do."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from llm_datadist._control.sockets import printed
from llm_datadist._errors import LLMStatusCode

FAILED = LLMStatusCode.LLM_LINK_FAILED
TIMEOUT = LLMStatusCode.LLM_TIMEOUT


def test_nobody_listens(end, refusing):
    a = end(1)
    (result,) = a.link(refusing)
    assert result.status is FAILED
    assert printed(refusing) in result.reason
    assert "refused" in result.reason


def test_a_name_that_does_not_resolve(end):
    a = end(1)
    (result,) = a.link(("no-such-host.invalid", 1))
    assert result.status is FAILED
    assert "no-such-host.invalid:1" in result.reason


def test_nobody_answers(end, black_hole):
    a = end(1)
    began = time.monotonic()
    (result,) = a.link(black_hole, timeout_ms=150)
    assert result.status is TIMEOUT
    assert 0.15 <= time.monotonic() - began < 0.4
    assert printed(black_hole) in result.reason
    assert "150 ms" in result.reason
    assert "no answer from what listens there" in result.reason


@pytest.mark.slow
def test_connections_that_are_not_even_completed_time_out(end):
    with socket.socket() as full, socket.socket() as filler:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        filler.connect(full.getsockname())
        (result,) = end(1).link(full.getsockname(), timeout_ms=150)
        assert result.status is TIMEOUT


@pytest.mark.parametrize("answer", [b"HTTP/1.0 400 Bad\r\n\r\n", b"", bytes(100)], ids=len)
def test_something_else_listens_there(end, answer):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            sock, _ = server.accept()
            with sock:
                sock.recv(1)
                sock.sendall(answer)

        serving = threading.Thread(target=serve, daemon=True)
        serving.start()
        (result,) = end(1).link(server.getsockname())
        serving.join(5)
    assert result.status is FAILED
    assert "llm-datadist" in result.reason


@pytest.mark.expects_log("lost: the peer closed")
def test_a_dialer_that_gives_up_leaves_nothing_at_the_acceptor(end):
    a, b = end(1), end(2)
    b.plane.gate.clear()
    (result,) = a.link(b, timeout_ms=300)
    assert result.status is TIMEOUT
    assert "complete the link" in result.reason
    b.plane.gate.set()
    assert a.linked() == []
    assert a.link(b)[0].is_ok
    assert len(b.plane.links) == len(a.plane.links) == 1
