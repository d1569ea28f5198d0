"""A name server that does not answer holds up nothing but the look-ups."""

from __future__ import annotations

import socket
import threading

from llm_datadist import LLMStatusCode

HOST = "silent.example"


def test_a_dead_name_server_holds_up_no_link_by_address(end, monkeypatch):
    answer, real = threading.Event(), socket.getaddrinfo

    def look_up(host, *args, flags=0, **named):
        if host == HOST and not flags & socket.AI_NUMERICHOST:
            assert answer.wait(30)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return real(host, *args, flags=flags, **named)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    a, b = end(1), end(2)
    try:
        results = a.link(*[(HOST, 1000 + number) for number in range(80)], timeout_ms=300)
        assert {result.status for result in results} == {LLMStatusCode.LLM_TIMEOUT}
        assert f"{HOST}:1000: the name server did not answer" in (results[0].reason)
        assert a.link(b)[0].is_ok  # needs workers, too
        assert a.unlink((HOST, 1), timeout_ms=300)[0].is_ok
        names = [thread.name for thread in threading.enumerate() if "-names" in thread.name]
        assert len(names) == 4
    finally:
        answer.set()
