"""One block over two plain sockets, the least that a pull over TCP can take."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from llm_datadist.cli.bench import hosts, processes, timing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

NAME = "two plain sockets"
_REQUEST_BYTES = 128  # about what a READ of one range has
_BLOCK_BYTES = 4096


def times(count: int, percents: Sequence[float]) -> list[float]:
    """Return percentiles, in us, of exchanges of a request and a block with another process."""
    process, pipe = processes.start(hosts.executable(hosts.OWNER), answer, daemon=True)
    address = processes.receive(process, pipe)
    with socket.create_connection(address) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        request, block = bytes(_REQUEST_BYTES), bytearray(_BLOCK_BYTES)

        def exchange() -> None:
            sock.sendall(request)
            receive(sock, block)

        values = timing.latencies(exchange, count)
    process.join()
    return [timing.percentile(values, percent) for percent in percents]


def answer(pipe: Connection) -> None:
    """Body of the other process: answer each request with a block."""
    with socket.create_server((hosts.address(hosts.OWNER), 0)) as listener:
        pipe.send(listener.getsockname())
        sock, _ = listener.accept()
    request, block = bytearray(_REQUEST_BYTES), bytes(_BLOCK_BYTES)
    with sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while receive(sock, request):
            sock.sendall(block)


def receive(sock: socket.socket, into: bytearray) -> bool:
    """Fill the buffer; return whether the other end sent that much."""
    view, filled = memoryview(into), 0
    while filled < len(into):
        got = sock.recv_into(view[filled:])
        if not got:
            return False
        filled += got
    return True
