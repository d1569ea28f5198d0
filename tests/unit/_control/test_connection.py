"""Control connections: what has arrived is read before the end of the connection counts."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

import pytest

from llm_datadist._control.connection import ControlConnection, PeerClosedError
from llm_datadist._control.conversation import Conversation
from llm_datadist._protocol.codec import MAX_GREETING_BYTES, ProtocolError, encode_frame
from llm_datadist._protocol.messages import Notify, Ping, Reject, Request, Unlink

GOODBYE = Unlink(reason="the peer was finalized")


def reset(sock):
    """Close a socket with a reset instead of an orderly end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@contextlib.contextmanager
def pair():
    """A TCP connection: (non-blocking end, blocking end)."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        near, _ = server.accept()
    near.setblocking(False)
    with near, far:
        yield near, far


class Heard:
    """A conversation and what it was told."""

    def __init__(self, connection):
        self.signals, self.messages, self.closed = [], [], []
        self.conversation = Conversation(
            connection, self._take, self.signals.append, self.closed.append
        )

    async def _take(self, message):
        self.messages.append(message)


def converse(near, act):
    """Run a conversation to its end while `act(connection)` plays the peer; what was heard."""

    async def run():
        connection = await ControlConnection.open(near)
        heard = Heard(connection)
        await asyncio.sleep(0)
        act(connection)
        await asyncio.wait_for(heard.conversation.run(), 5)
        assert heard.conversation.ended.is_set()
        return heard

    return asyncio.run(run())


def test_a_goodbye_before_a_reset_is_heard():
    with pair() as (near, far):

        def act(_connection):
            far.sendall(encode_frame(Notify(body=b"x")) + encode_frame(GOODBYE))
            reset(far)

        heard = converse(near, act)
    assert heard.signals == [GOODBYE]
    assert len(heard.closed) == 1


def test_a_goodbye_is_heard_when_it_is_a_write_that_fails():
    """The write meets the reset first: what lies in the socket is read all the same."""
    with pair() as (near, far):

        def act(connection):
            far.sendall(encode_frame(GOODBYE))
            reset(far)
            connection.send(Ping(id=1))

        heard = converse(near, act)
    assert heard.signals == [GOODBYE]


def test_a_ping_that_cannot_be_answered_does_not_hide_the_goodbye():
    with pair() as (near, far):

        def act(_connection):
            far.sendall(encode_frame(Ping(id=7)) * 50 + encode_frame(GOODBYE))
            reset(far)

        heard = converse(near, act)
    assert heard.signals == [GOODBYE]


def test_more_than_the_reader_takes_at_once_is_read_to_the_end():
    body = bytes(100_000)
    with pair() as (near, far):
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)

        def act(_connection):
            far.sendall(encode_frame(Request(id=1, body=body)) * 3 + encode_frame(GOODBYE))
            reset(far)

        heard = converse(near, act)
    assert heard.signals == [GOODBYE]
    assert len(heard.messages) >= 2  # the last may come too late to be answered


def test_a_reset_alone_is_an_end_without_goodbye():
    with pair() as (near, far):
        heard = converse(near, lambda _connection: reset(far))
    assert heard.signals == []
    assert "broke" in heard.closed[0]


def test_a_dialer_that_gave_up_too_late_has_unlinked():
    with pair() as (near, far):

        def act(_connection):
            far.sendall(encode_frame(Reject(status=1, reason="out of time")))
            reset(far)

        heard = converse(near, act)
    assert heard.signals == [Unlink(reason="out of time")]


@pytest.mark.parametrize("trusted", [False, True])
def test_only_an_authenticated_peer_sends_large_frames(trusted):
    async def run(near, far):
        connection = await ControlConnection.open(near)
        if trusted:
            connection.trust()
        far.sendall(struct.pack("<I", MAX_GREETING_BYTES + 1))
        far.close()
        expected = PeerClosedError if trusted else ProtocolError
        with pytest.raises(expected):
            await connection.receive()
        connection.close()

    with pair() as (near, far):
        asyncio.run(run(near, far))


def test_a_message_of_the_handshake_is_received_before_the_error():
    async def run(near, far):
        connection = await ControlConnection.open(near)
        far.sendall(encode_frame(Reject(status=1, reason="no")))
        reset(far)
        await asyncio.sleep(0.01)  # the loop meets the reset while nobody reads
        assert await connection.receive() == Reject(status=1, reason="no")
        with pytest.raises(PeerClosedError, match="broke"):
            await connection.receive()
        connection.close()

    with pair() as (near, far):
        asyncio.run(run(near, far))


def test_what_was_finished_is_delivered_though_the_peer_does_not_read():
    async def run(near, far):
        connection = await ControlConnection.open(near)
        connection.send(GOODBYE)
        connection.finish(1.0)
        for _ in range(100):
            if connection.is_delivered:
                break
            await asyncio.sleep(0.005)
        assert connection.is_delivered
        assert far.recv(1000) == encode_frame(GOODBYE)
        assert far.recv(1) == b""
        connection.abort()
        await asyncio.sleep(0)

    with pair() as (near, far):
        asyncio.run(run(near, far))


def test_a_connection_whose_peer_does_not_read_is_congested():
    async def run(near):
        connection = await ControlConnection.open(near)
        assert not connection.is_congested
        for _ in range(64):  # more than the sockets of both ends hold
            connection.send(Notify(body=bytes(256 << 10)))
        assert connection.is_congested
        connection.abort()
        await asyncio.sleep(0)

    with pair() as (near, _):
        asyncio.run(run(near))


def test_only_a_link_with_engine_messages_has_a_task_for_them():
    async def run(near, far):
        heard = Heard(await ControlConnection.open(near))
        second = asyncio.Event()

        async def take(message):
            heard.messages.append(message.body)
            if len(heard.messages) == 2:
                second.set()

        heard.conversation._on_message = take
        running = asyncio.ensure_future(heard.conversation.run())
        far.setblocking(False)
        far.sendall(encode_frame(Ping(id=3)))
        await asyncio.get_running_loop().sock_recv(far, 64)  # the Pong
        idle = len(asyncio.all_tasks())
        far.sendall(encode_frame(Notify(body=b"1")) + encode_frame(Notify(body=b"2")))
        await asyncio.wait_for(second.wait(), 5)
        handling = len(asyncio.all_tasks())
        reset(far)
        await asyncio.wait_for(running, 5)
        await asyncio.sleep(0)
        assert heard.messages == [b"1", b"2"]
        return idle, handling, len(asyncio.all_tasks())

    with pair() as (near, far):
        assert asyncio.run(run(near, far)) == (2, 3, 1)
