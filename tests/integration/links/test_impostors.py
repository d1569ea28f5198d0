"""Who is dialed may claim to be another peer: that one's links and set-ups do not suffer."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from llm_datadist._errors import LLMStatusCode
from llm_datadist._protocol.codec import (
    HEADER_BYTES,
    MAX_GREETING_BYTES,
    PREAMBLE_BYTES,
    Kind,
    decode_header,
    decode_message,
    decode_preamble,
    encode_frame,
)
from llm_datadist._protocol.handshake import Handshake, Side, fresh_nonce
from llm_datadist._protocol.messages import Accept, Welcome


class Impostor:
    """Listens, greets in the name of another instance, and stalls or accepts."""

    def __init__(self, cluster_id, incarnation, accepts):
        self._name = cluster_id, incarnation
        self._accepts = accepts
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = self._server.getsockname()
        self.confirmed = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        with contextlib.suppress(OSError, EOFError):
            while True:
                sock, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock):
        with contextlib.suppress(OSError, EOFError), sock:
            kind = decode_preamble(self._exactly(sock, PREAMBLE_BYTES))
            if kind is Kind.CONTROL:
                self._greet(sock)
            while sock.recv(4096):  # a lane stalls, too
                pass

    def _greet(self, sock):
        shake = Handshake(Side.ACCEPTOR, None)
        shake.received(self._message(sock))
        cluster_id, incarnation = self._name
        welcome = Welcome(cluster_id=cluster_id, incarnation=incarnation, nonce=fresh_nonce())
        self._say(sock, shake, welcome)
        confirm = self._message(sock)
        shake.received(confirm)
        self.confirmed.set()
        if self._accepts:
            accept = Accept(session=bytes(16), num_lanes=1, endpoint=confirm.endpoint)
            self._say(sock, shake, accept)

    @staticmethod
    def _say(sock, shake, message):
        message = shake.prove(message)
        shake.sent(message)
        sock.sendall(encode_frame(message))

    @staticmethod
    def _exactly(sock, size):
        data = b""
        while len(data) < size:
            got = sock.recv(size - len(data))
            if not got:
                raise EOFError
            data += got
        return data

    def _message(self, sock):
        size = decode_header(self._exactly(sock, HEADER_BYTES), MAX_GREETING_BYTES)
        return decode_message(self._exactly(sock, size))

    def close(self):
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


@pytest.fixture
def impostor():
    made = []

    def make(peer, accepts):
        cluster_id = peer.table._context.cluster_id
        made.append(Impostor(cluster_id, peer.incarnation, accepts))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_claim_does_not_end_the_link_of_the_one_that_it_names(end, impostor):
    one, peer = end(1), end(2)
    link = one.link(peer)[0].link
    (result,) = one.link(impostor(peer, accepts=True))
    assert result.status is LLMStatusCode.LLM_ALREADY_LINK
    assert "alive" in result.reason
    assert link.alive
    assert one.table.get(2) is link


@pytest.mark.slow
@pytest.mark.parametrize("lower", [True, False], ids=["our incarnation is lower", "higher"])
@pytest.mark.parametrize("accepts", [True, False], ids=["it accepts", "it stalls at once"])
def test_a_dial_that_stalls_in_a_peers_name_keeps_that_peer_out_for_a_moment(
    end, impostor, lower, accepts
):
    one = end(1, incarnation=100, lanes_per_link=1)
    peer = end(2, incarnation=200 if lower else 50, lanes_per_link=1)
    claims = impostor(peer, accepts)
    thread = threading.Thread(target=one.link, args=(claims,), kwargs={"timeout_ms": 10_000})
    thread.start()
    assert claims.confirmed.wait(5)
    began = time.monotonic()
    (result,) = peer.link(one, timeout_ms=15_000)
    assert result.is_ok, result.reason
    assert time.monotonic() - began < 8
    claims.close()
    thread.join(25)
    assert not thread.is_alive()
    assert peer.linked() == [1]
    assert one.linked() == [2]


@pytest.mark.slow
def test_an_own_dial_that_stalls_in_a_peers_name_makes_way_for_another(end, impostor):
    one, peer = end(1, lanes_per_link=1), end(2, lanes_per_link=1)
    claims = impostor(peer, accepts=False)
    thread = threading.Thread(target=one.link, args=(claims,), kwargs={"timeout_ms": 12_000})
    thread.start()
    assert claims.confirmed.wait(5)
    deadline = time.monotonic() + 10
    while not one.link(peer)[0].is_ok:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert peer.linked() == [1]
    claims.close()
    thread.join(20)
    assert not thread.is_alive()
