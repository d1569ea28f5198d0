"""A TCP proxy between two instances that can disturb the traffic, on a separate thread.

    with Proxy(server.listen_address) as proxy:
        client.link(proxy.address)
        proxy.spoil(Fault("hold", Kind.LANE, "down", after=100))
        ...
        proxy.heal()

Bytes of a direction are counted per connection from the moment of `spoil` on. "up" is from the side
that dialed.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass

from llm_datadist._protocol.codec import PREAMBLE_BYTES, Kind, ProtocolError, decode_preamble

ACTIONS = ("delay", "throttle", "hold", "corrupt", "truncate", "reset")
_MAX_QUEUED = 4 << 20
_READ_BYTES = 1 << 16
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Fault:
    """The disturbance of the bytes of a direction.

    Attributes:
        action: delay: everything arrives `value` seconds later. throttle: `value` bytes a second.
            hold: nothing passes until `heal`, which is when the end of a connection is noticed,
            too; what was held of one that has ended by then is lost, as in a network that was cut.
            corrupt: one byte is another. truncate: the connection ends in both directions. reset:
            it ends by RST.
        kind: Of connections; None = all.
        direction: up, down or both.
        after: Bytes that pass unspoiled.
        value: See action.
        once: Only to the first connection that comes so far.
    """

    action: str
    kind: Kind | None = Kind.LANE
    direction: str = "both"
    after: int = 0
    value: float = 0.0
    once: bool = False

    def __post_init__(self):
        assert self.action in ACTIONS


class Proxy:
    """See the module."""

    def __init__(self, target, listen_ip="127.0.0.1"):
        self._target = tuple(target)
        self._listener = socket.create_server((listen_ip, 0), backlog=512)
        self._listener.setblocking(False)
        self.address = self._listener.getsockname()[:2]
        self.fault = None
        self.hits = 0  # how often the fault has had an effect
        self.victim = None  # the first pump that it met
        self.connections = []
        self.recorded = None  # of everything that passes, as (kind, direction, bytes)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def retarget(self, target):
        """Connect new connections to another listener."""
        self._target = tuple(target)

    def spoil(self, fault):
        """Disturb present and future connections."""
        self._call(self._set, fault)

    def heal(self):
        """End the disturbance."""
        self._call(self._set, None)

    def hit(self, pump):
        """Record that the fault has had an effect. Proxy's thread."""
        self.hits += 1
        self.victim = self.victim or pump

    def record(self):
        """Record all bytes from now on."""
        self.recorded = []

    def wait_hit(self, seconds=5.0):
        """Wait until the fault has had an effect."""
        deadline = time.monotonic() + seconds
        while not self.hits:
            assert time.monotonic() < deadline, f"nothing met {self.fault}"
            time.sleep(0.001)

    def open_connections(self, kind=None):
        return [each for each in self.connections if kind in (None, each.kind)]

    def close(self):
        """Stop after the bytes of closed connections have passed; end others after 1 s."""
        self.heal()
        deadline = time.monotonic() + 1
        while self.connections and time.monotonic() < deadline:
            time.sleep(0.005)
        self._call(self._stop)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _call(self, function, *args):
        done = threading.Event()

        def run():
            function(*args)
            done.set()

        self._loop.call_soon_threadsafe(run)
        assert done.wait(10)

    def _set(self, fault):
        self.fault = fault
        self.hits = 0
        self.victim = None
        for connection in list(self.connections):
            for pump in connection.pumps:
                pump.restart()

    def _run(self):
        self._loop.add_reader(self._listener, self._accept)
        self._loop.run_forever()
        self._loop.run_until_complete(_cancel_others())
        self._loop.close()

    def _stop(self):
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for connection in list(self.connections):
            connection.end()
        self._loop.stop()

    def _accept(self):
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            client, _ = self._listener.accept()
            connection = Connection(self, client, self._loop)
            task = self._loop.create_task(connection.run(self._target))
            task.add_done_callback(lambda _: connection.end())  # whatever it was cut off in


async def _cancel_others():
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Connection:
    """One connection through the proxy: two sockets, a pump in each direction."""

    def __init__(self, proxy, client, loop):
        self.proxy = proxy
        self.kind = None
        self.loop = loop
        self._client = client
        self._server = None
        self._tasks = []
        self.pumps = []

    async def run(self, target):
        self._client.setblocking(False)
        family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        self._server = socket.socket(family)
        self._server.setblocking(False)
        try:
            await self.loop.sock_connect(self._server, target)
            head = await self._head()
        except OSError:
            return
        for sock in (self._client, self._server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        up = Pump(self, self._client, self._server, "up", head)
        down = Pump(self, self._server, self._client, "down")
        self.pumps = [up, down]
        self.proxy.connections.append(self)
        self._tasks = [task for pump in self.pumps for task in pump.tasks()]
        await asyncio.gather(*self._tasks)
        self.end(reset=False)

    def inject(self, data):
        """Send bytes to the listening side that its peer has not sent. Any thread."""
        self.loop.call_soon_threadsafe(self.pumps[0].put, data)

    async def _head(self):
        """Receive the preamble, or what there is of it; it tells the kind."""
        head = b""
        while len(head) < PREAMBLE_BYTES:
            part = await self.loop.sock_recv(self._client, PREAMBLE_BYTES - len(head))
            if not part:
                break
            head += part
        with contextlib.suppress(ProtocolError):
            self.kind = decode_preamble(head)
        return head

    def end(self, *, reset=True):
        """Close both sockets, by RST if so."""
        if self in self.proxy.connections:
            self.proxy.connections.remove(self)
        for sock in (self._client, self._server):
            if sock is not None and sock.fileno() >= 0:
                self.loop.remove_reader(sock)
                self.loop.remove_writer(sock)
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                sock.close()
        for task in self._tasks:
            task.cancel()


class Pump:
    """One direction of a connection: reads bytes, delays them, writes them."""

    def __init__(self, connection, source, sink, direction, head=b""):
        self._connection = connection
        self._proxy = connection.proxy
        self._loop = connection.loop
        self._source = source
        self._sink = sink
        self._direction = direction
        self._queue = deque([(0.0, head)] if head else [])  # (when it is due, bytes)
        self._ended = None  # "end" or "reset", read from the source
        self._passed = 0  # since the fault was set
        self._changed = asyncio.Event()
        self._was_held = False

    def tasks(self):
        return [self._loop.create_task(self._read()), self._loop.create_task(self._write())]

    def restart(self):
        """Apply another fault."""
        self._passed = 0
        self._queue = deque((0.0, data) for _, data in self._queue)
        self.wake()

    def wake(self):
        self._changed.set()

    def put(self, data):
        """Queue bytes that are due at once."""
        self._queue.append((0.0, data))
        self.wake()

    @property
    def _closed(self):
        return self._sink.fileno() < 0

    @property
    def _fault(self):
        fault = self._proxy.fault
        if fault is None or fault.kind not in (None, self._connection.kind):
            return None
        if fault.once and self._proxy.victim not in (None, self):
            return None
        return fault if fault.direction in ("both", self._direction) else None

    async def _wait(self, seconds=None):
        """Wait until something changes."""
        self._changed.clear()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)

    async def _read(self):
        while not self._closed and self._ended is None:
            if sum(len(data) for _, data in self._queue) >= _MAX_QUEUED:
                await asyncio.sleep(0.002)
                continue
            try:
                data = await self._loop.sock_recv(self._source, _READ_BYTES)
            except OSError:
                data = None
            if self._closed:
                return
            fault = self._fault
            delay = fault.value if fault is not None and fault.action == "delay" else 0.0
            if delay:
                self._proxy.hit(self)
            if data and self._proxy.recorded is not None:
                self._proxy.recorded.append((self._connection.kind, self._direction, data))
            if data:
                self._queue.append((time.monotonic() + delay, data))
            else:
                self._queue.append((time.monotonic() + delay, b""))
                self._ended = "reset" if data is None else "end"
            self.wake()

    async def _write(self):
        while not self._closed:
            if self._holding():
                self._was_held = True
                self._proxy.hit(self)
                await self._wait()
            elif self._was_held and self._source_is_gone():
                self._connection.end()
            elif not self._queue:
                self._was_held = False
                await self._wait()
            elif (left := self._queue[0][0] - time.monotonic()) > 0:
                await self._wait(left)
            else:
                self._was_held = False
                if not await self._deliver(self._queue.popleft()[1]):
                    return

    def _holding(self):
        fault = self._fault
        held = fault is not None and fault.action == "hold" and self._passed >= fault.after
        return held and (bool(self._queue) or self._was_held)

    def _source_is_gone(self):
        if self._ended is not None:
            return True
        poll = select.poll()
        poll.register(self._source, select.POLLRDHUP)
        return bool(poll.poll(0))

    async def _deliver(self, data):
        """Pass bytes on, or the end; return whether there is more to do."""
        if not data:
            if self._ended == "reset":
                self._connection.end()
            else:
                with contextlib.suppress(OSError):
                    self._sink.shutdown(socket.SHUT_WR)
            return False
        data, rest, pause = self._spoilt(data)
        if rest:
            self._queue.appendleft((0.0, rest))
        try:
            await self._loop.sock_sendall(self._sink, data)
        except OSError:
            self._connection.end()
            return False
        if pause is None:
            return False
        if pause:
            await self._wait(pause)
        return True

    def _spoilt(self, data):
        """Return what is sent now, what remains, and the pause after it; None ends everything."""
        fault = self._fault
        if fault is None:
            return data, b"", 0.0
        clean = max(fault.after - self._passed, 0)
        if clean >= len(data):
            self._passed += len(data)
            return data, b"", 0.0
        action = fault.action
        if clean and action != "corrupt":
            self._passed += clean
            return data[:clean], data[clean:], 0.0
        if action == "throttle":
            self._proxy.hit(self)
            size = max(int(fault.value / 100), 1)
            return data[:size], data[size:], size / fault.value
        if action == "corrupt":
            if self._passed > fault.after:
                return data, b"", 0.0
            self._proxy.hit(self)
            self._passed += len(data)
            return data[:clean] + bytes([data[clean] ^ 0xFF]) + data[clean + 1 :], b"", 0.0
        if action in ("truncate", "reset"):
            self._proxy.hit(self)
            self._cut(reset=action == "reset")
            return b"", b"", None
        return data, b"", 0.0

    def _cut(self, *, reset):
        if reset:
            self._connection.end()
            return
        for sock in (self._source, self._sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
