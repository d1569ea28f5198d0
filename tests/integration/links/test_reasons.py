"""Texts of failed calls: what was wrong first, where, and what to do (api.md 1.1)."""

from __future__ import annotations

import contextlib
import errno
import re
import socket

import pytest

from llm_datadist._errors import LLMException, LLMStatusCode

FAILED = LLMStatusCode.LLM_LINK_FAILED
TIMEOUT = LLMStatusCode.LLM_TIMEOUT


def refused(one, address, status, pattern, **options):
    (result,) = one.link(address, **options)
    assert result.status is status
    assert re.fullmatch(pattern, result.reason), result.reason


def test_port_0(end):
    refused(end(1), ("127.0.0.1", 0), FAILED, r"127\.0\.0\.1:0: nothing can listen at port 0; .+")


def test_a_port_where_nothing_listens(end, refusing):
    pattern = (
        r"127\.0\.0\.1:\d+: cannot connect: Connection refused; check that the peer listens .+"
    )
    refused(end(1), refusing, FAILED, pattern)
    refused(end(1), refusing, FAILED, f"cluster 7 at {pattern}", cluster_id=7)


def test_a_host_name_that_does_not_exist(end, monkeypatch):
    def getaddrinfo(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    one = end(1)
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    pattern = (
        r"no-such-host:9: host name 'no-such-host' cannot be resolved \(Name .+\); correct it.+"
    )
    refused(one, ("no-such-host", 9), FAILED, pattern)


@pytest.fixture
def dropping():
    """An address whose queue of connections is full, so that the kernel drops further requests."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            assert client.connect_ex(server.getsockname()) == errno.EINPROGRESS
        yield server.getsockname()


def test_packets_that_are_dropped(end, dropping):
    pattern = (
        r".+: no answer to the connection request, within 50 ms; .* firewall drops packets: .+"
    )
    refused(end(1), dropping, TIMEOUT, pattern, timeout_ms=50)


def test_a_listener_that_does_not_answer(end, black_hole):
    pattern = r".+: no answer from what listens there, within 50 ms; check that it is an llm-.+"
    refused(end(1), black_hole, TIMEOUT, pattern, timeout_ms=50)


def test_an_address_where_an_instance_was_finalized(end):
    a, b = end(1), end(2)
    a.link(b)
    address = b.address
    b.table.close()
    a.plane.wait(0)
    ended = r"the link to cluster 2 at this address ended: the peer was finalized \d+ ms ago"
    pattern = f".+: {ended}; cannot connect: .+"
    refused(a, address, FAILED, pattern)


def not_linked(one, cluster_id):
    with pytest.raises(LLMException) as caught:
        one.table.get(cluster_id, "pull_blocks")
    assert caught.value.status_code is LLMStatusCode.LLM_NOT_YET_LINK
    opening = f"pull_blocks failed [LLM_NOT_YET_LINK], peer cluster {cluster_id}: "
    return str(caught.value).removeprefix(opening)


def test_a_cluster_id_that_is_not_linked_names_those_that_are(end):
    one = end(1)
    assert not_linked(one, 7) == (
        "there is no link to it; no cluster is linked; link_clusters first, or correct the cluster "
        "id"
    )
    others = [end(number, lanes_per_link=1) for number in range(20, 10, -1)]
    one.link(*others)
    named = ", ".join(
        f"cluster {11 + place} at 127.0.0.1:{other.address[1]}"
        for place, other in enumerate(reversed(others[2:]))
    )
    assert f"; linked: {named} and 2 more; " in not_linked(one, 7)


def test_a_link_that_has_ended_says_why_and_when(end):
    one, other = end(1), end(2)
    one.link(other)
    one.unlink(2)
    assert re.fullmatch(r"its link ended: unlinked at this end \d+ ms ago; .+", not_linked(one, 2))
    one.link(other)
    other.unlink(1)
    assert re.match(r"its link ended: unlinked by the peer \d+ ms ago", not_linked(one, 2))
    one.link(other)
    other.table.close()
    one.plane.wait(0)
    assert re.match(r"its link ended: the peer was finalized \d+ ms ago", not_linked(one, 2))
