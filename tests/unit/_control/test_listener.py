"""Connections of strangers: their time, their number, and what ends them."""

import asyncio
import socket
from types import SimpleNamespace

import pytest

from llm_datadist._control import listener
from llm_datadist._control.listener import ConnectionRouter
from llm_datadist._protocol.codec import Kind, encode_preamble

pytestmark = pytest.mark.expects_log("connection from .* closed")
LONG_S = 10.0


class World:
    """A router over loopback connections; `serve` is what its route does with one."""

    def __init__(self, serve=None):
        self.sockets = []
        self.served = []
        self._serve = serve
        self.router = ConnectionRouter(
            SimpleNamespace(spawn=asyncio.ensure_future), {Kind.CONTROL: self._route}
        )

    async def _route(self, incoming):
        self.served.append(incoming)
        try:
            if self._serve is not None:
                self._serve(incoming)
            await asyncio.Event().wait()
        finally:
            incoming.sock.close()

    async def connect(self, data=b""):
        with socket.create_server(("127.0.0.1", 0)) as server:
            far = socket.create_connection(server.getsockname())
            near, _ = server.accept()
        far.setblocking(False)
        far.sendall(data)
        self.sockets.append(far)
        self.router.serve(near)
        await asyncio.sleep(0)
        return far

    @staticmethod
    async def is_closed(far):
        loop = asyncio.get_running_loop()
        return await asyncio.wait_for(loop.sock_recv(far, 1), LONG_S) == b""

    def run(self, body):
        async def run():
            try:
                await body()
            finally:
                own = asyncio.current_task()
                serving = [task for task in asyncio.all_tasks() if task is not own]
                for task in serving:
                    task.cancel()
                await asyncio.gather(*serving, return_exceptions=True)

        try:
            asyncio.run(run())
        finally:
            for each in self.sockets:
                each.close()


async def until(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not happen")


@pytest.mark.parametrize("data", [b"", encode_preamble(Kind.CONTROL)])
def test_a_stranger_that_does_not_prove_itself_in_time_is_closed(monkeypatch, data):
    monkeypatch.setattr(listener, "HANDSHAKE_SECONDS", 0.01)
    world = World()

    async def body():
        far = await world.connect(data)
        assert await world.is_closed(far)

    world.run(body)


def test_an_authenticated_peer_has_no_time_limit(monkeypatch):
    monkeypatch.setattr(listener, "HANDSHAKE_SECONDS", 0.01)
    world = World(lambda incoming: incoming.set_authenticated())

    async def body():
        far = await world.connect(encode_preamble(Kind.CONTROL))
        await until(lambda: world.served)
        stranger = await world.connect()
        assert await world.is_closed(stranger), "its time was over"
        with pytest.raises(BlockingIOError):
            far.recv(1)

    world.run(body)


def test_the_oldest_of_too_many_strangers_is_closed(monkeypatch):
    monkeypatch.setattr(listener, "MAX_UNAUTHENTICATED", 2)
    world = World()

    async def body():
        first, second, third = [await world.connect() for _ in range(3)]
        assert await world.is_closed(first)
        for far in (second, third):
            with pytest.raises(BlockingIOError):
                far.recv(1)

    world.run(body)


@pytest.mark.parametrize("data", [b"GET / HT", encode_preamble(Kind.CONTROL_TLS)])
def test_what_is_no_connection_of_this_instance_is_closed(data):
    world = World()

    async def body():
        far = await world.connect(data)
        assert await world.is_closed(far)
        assert world.served == []

    world.run(body)
