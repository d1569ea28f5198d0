"""Texts and lines that others cause in the log: printable, short, and few."""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading

import msgspec
import pytest

from llm_datadist import LLMClusterInfo, LLMException
from llm_datadist._protocol.codec import (
    HEADER_BYTES,
    Kind,
    decode_header,
    encode_frame,
    encode_preamble,
)
from llm_datadist._protocol.handshake import fresh_nonce
from llm_datadist._protocol.messages import PROTOCOL_VERSION, Hello, Reject, Reply, Unlink, Welcome

pytestmark = pytest.mark.expects_log(".*")
CONTROL = encode_preamble(Kind.CONTROL)
EVIL = "x\nCRITICAL all is lost\x1b[2J\x07\r\u202e"
LONG = EVIL * 40


def frame(**fields):
    """A message as nobody would send it."""
    body = msgspec.msgpack.encode(fields)
    return struct.pack("<I", len(body)) + body


def check(caplog, *, at_least=1):
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) >= at_least
    for line in lines:
        assert line.isprintable(), line
        assert len(line) < 2500


HELLO = {
    "type": "hello",
    "version": PROTOCOL_VERSION,
    "cluster_id": 66,
    "incarnation": 66,
    "nonce": bytes(32),
}
WELCOMED = [HELLO, {"type": "reject", "status": 5, "reason": LONG}]


@pytest.mark.parametrize(
    "said",
    [
        pytest.param([{"type": LONG}], id="no such message"),
        pytest.param([HELLO | {"listen": [EVIL, 1]}], id="host"),
        pytest.param([HELLO | {"domain": {"name": EVIL, "ranks": {1: 1}, "rank": 1}}], id="domain"),
        pytest.param([HELLO | {"version": EVIL}], id="version"),
        pytest.param(WELCOMED, id="reason"),
        pytest.param(
            [HELLO, {"type": "reject", "status": 5, "reason": "x" * (1 << 20)}], id="1 MB"
        ),
    ],
)
def test_of_whom_nobody_knows(end, caplog, said):
    caplog.set_level(logging.DEBUG)
    far = end(1)
    with contextlib.suppress(OSError), socket.create_connection(far.address, 5) as sock:
        sock.sendall(CONTROL)
        for message in said:
            sock.sendall(frame(**message))
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass
    far.table.close()
    check(caplog)


@contextlib.contextmanager
def answering(*messages):
    """A listener that answers a dial with some frames."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            sock, _ = server.accept()
            with sock:
                sock.recv(len(CONTROL), socket.MSG_WAITALL)
                for message in messages:
                    header = sock.recv(HEADER_BYTES, socket.MSG_WAITALL)
                    sock.recv(decode_header(header), socket.MSG_WAITALL)
                    sock.sendall(message)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()
        thread.join(5)


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([frame(type="reject", status=5, reason=LONG)], id="reject"),
        pytest.param([frame(type=LONG)], id="no such message"),
        pytest.param([frame(type="welcome", cluster_id=EVIL)], id="welcome"),
        pytest.param(
            [
                encode_frame(Welcome(cluster_id=9, incarnation=9, nonce=fresh_nonce())),
                frame(type="reject", status=5, reason=LONG),
            ],
            id="late reject",
        ),
    ],
)
def test_of_one_that_is_dialed(end, caplog, messages):
    caplog.set_level(logging.DEBUG)
    near = end(1)
    with answering(*messages) as address:
        (result,) = near.table.link_clusters([info(address)], 3000)
    assert not result.is_ok
    assert result.reason.isprintable()
    assert len(result.reason) < 2000
    check(caplog)


def info(address):
    made = LLMClusterInfo()
    made.append_local_ip_info("127.0.0.1", 0)
    made.append_remote_ip_info(*address)
    return made


def test_of_a_linked_peer(end, caplog):
    """The reason of an unlink, and why a request failed."""
    caplog.set_level(logging.DEBUG)
    a, b = end(1), end(2)
    assert a.link(b)[0].is_ok
    with pytest.raises(LLMException) as failed:
        b.table.hooks.on_request = refuse
        a.table.request(a.table.get(2), b"", 5000)
    assert str(failed.value).isprintable()
    link = a.table.get(2)
    far = b.table.get(1)

    async def say():
        connection = far.conversation.connection
        connection._writer.write(connection._tags.tagged(frame(type="unlink", reason=LONG)))

    b.table._control.run(say(), "test")
    a.plane.wait(0)
    assert "CRITICAL" in link.reason  # it is the peer's
    assert link.reason.isprintable()
    with pytest.raises(LLMException) as failed:
        a.table.check(2, 1000)
    assert str(failed.value).isprintable()
    check(caplog)


def refuse(link, body):
    raise OSError(EVIL)


def test_messages_of_this_end_carry_nothing_hostile_either():
    for message in (Reject(status=5, reason=EVIL), Unlink(reason=EVIL), Reply(id=1, error=EVIL)):
        assert b"\x1b" not in encode_frame(message)
    assert Hello(version=1, cluster_id=1, incarnation=1, nonce=bytes(32)).listen is None


def warnings(caplog):
    return [record for record in caplog.records if record.levelno >= logging.INFO]


def test_health_probes_are_no_news(end, caplog):
    """Whether they close, or reset."""
    far = end(1)
    caplog.set_level(logging.DEBUG)
    before = len(warnings(caplog))
    for number in range(40):
        with socket.create_connection(far.address, 5) as sock:
            if number % 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.table.close()
    assert len(warnings(caplog)) == before


def test_a_flood_of_strangers_is_one_line(end, caplog):
    far = end(1)
    for _ in range(100):
        with socket.create_connection(far.address, 5) as sock:
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                while sock.recv(100):
                    pass
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1, lines
    assert "not a connection of llm-datadist" in lines[0].getMessage()
