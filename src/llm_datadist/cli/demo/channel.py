"""Typed messages over a socket pair between the router and a worker process."""

from __future__ import annotations

import os
import queue
import struct
import threading
from typing import TYPE_CHECKING

import msgspec

from llm_datadist.cli.demo.messages import Message

if TYPE_CHECKING:
    import socket

_LENGTH = struct.Struct("<I")


class Channel:
    """Sends and receives whole messages. One thread may send while another receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)

    def fileno(self) -> int:
        """Return the descriptor, for select."""
        return self._socket.fileno()

    def send(self, message: Message) -> None:
        """Send one message.

        Raises:
            OSError: The other end is closed.
        """
        body = msgspec.msgpack.encode(message)
        self._socket.sendall(_LENGTH.pack(len(body)) + body)

    def receive(self) -> Message | None:
        """Wait for one message; None if the other end is closed."""
        header = self._read(_LENGTH.size)
        if header is None:
            return None
        body = self._read(_LENGTH.unpack(header)[0])
        return None if body is None else self._decoder.decode(body)

    def close(self) -> None:
        """Close this end; the other end's `receive` then returns None."""
        self._socket.close()

    def _read(self, count: int) -> bytes | None:
        received = bytearray()
        while len(received) < count:
            try:
                part = self._socket.recv(count - len(received))
            except ConnectionError:
                return None
            if not part:
                return None
            received += part
        return bytes(received)


class Inbox:
    """Incoming messages of a worker, read by a thread.

    The thread ends the whole process when the router closes the channel, so that no worker outlives
    the demo.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="demo-inbox", daemon=True).start()

    def get(self) -> Message:
        """Wait for the next message."""
        return self._messages.get()

    def get_nowait(self) -> Message | None:
        """Return the next message, or None if none has arrived."""
        try:
            return self._messages.get_nowait()
        except queue.Empty:
            return None

    def _read(self) -> None:
        while True:
            message = self._channel.receive()
            if message is None:
                os._exit(1)
            self._messages.put(message)
