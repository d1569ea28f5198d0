"""A peer's end of its group, and the process that runs its body."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import sys
import threading
import traceback
from typing import TYPE_CHECKING, NoReturn

from llm_datadist.testing._board import Board
from llm_datadist.testing._bodies import BodyName
from llm_datadist.testing._wire import (
    Arrived,
    Connection,
    EventSet,
    Message,
    Released,
    Sent,
    Start,
    Stop,
)
from llm_datadist.testing.exits import Finished, Raised, Value

if TYPE_CHECKING:
    from collections.abc import Callable


class Member:
    """First argument of a body: its connection to the group.

    Attributes:
        name: Name of this peer.
        index: Number of this peer in its group, from 0.

    Every wait is bounded by its `timeout_s`, by default the group's. It raises TimeoutError if it
    is not fulfilled in time, and GroupClosed if the group ends first.
    """

    def __init__(self, connection: Connection, start: Start) -> None:
        self.name: str = start.name
        self.index: int = start.index
        self._timeout_s = start.timeout_s
        self._connection = connection
        self._board = Board()

    def send(self, value: Value) -> None:
        """Send a value to the group, where `Peer.receive` returns it."""
        self._connection.send(Sent(value))

    def receive(self, timeout_s: float | None = None) -> Value:
        """Wait for the next value of `Peer.send`."""
        return self._board.receive(self._bound(timeout_s))

    def set_event(self, name: str, value: Value = None) -> None:
        """Set an event for the group and all peers."""
        self._connection.send(EventSet(name, value))

    def wait_for(self, name: str, timeout_s: float | None = None) -> Value:
        """Wait until some member of the group has set an event; return the event's value."""
        return self._board.event(name, self._bound(timeout_s))

    def barrier(self, name: str, parties: int, timeout_s: float | None = None) -> None:
        """Wait until `parties` members, including this one, are at the barrier; reusable."""
        release = self._board.arrive(name)
        self._connection.send(Arrived(name, parties))
        self._board.pass_barrier(name, release, self._bound(timeout_s))

    def wait_end(self) -> None:
        """Wait until the group ends; the last call of a body that serves others."""
        self._board.wait_end(None)

    def _bound(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else timeout_s

    def _take(self, message: Message) -> None:
        match message:
            case Sent(value):
                self._board.deliver(value)
            case EventSet(name, value):
                self._board.set_event(name, value)
            case Released(name):
                self._board.release(name)
            case Stop():
                self._board.end()


def run_peer(sock: socket.socket, group_gone: Callable[[], None]) -> bool:
    """Run one peer: read the body's name, run it, report how it ended.

    Args:
        sock: The peer's end; closed on return.
        group_gone: Called when the group's end closes while the body runs.

    Returns:
        Whether the body returned.
    """
    connection = Connection(sock)
    messages: list[Message] = []
    while not messages:
        messages, gone = connection.read()
        if gone:
            return False
    start = messages.pop(0)
    assert isinstance(start, Start)
    member = Member(connection, start)
    done = threading.Event()
    reader = threading.Thread(
        target=_read, args=(connection, member, messages, done, group_gone), daemon=True
    )
    reader.start()
    report = _run_body(member, start)
    done.set()
    try:
        connection.send(report)
    except (TypeError, OverflowError) as error:  # a value that is none of `Value`
        report = Raised(type(error).__name__, f"the body's value cannot be sent: {error}")
        connection.send(report)
    connection.shut()
    reader.join()
    connection.close()
    return isinstance(report, Finished)


def _run_body(member: Member, start: Start) -> Finished | Raised:
    try:
        for entry in start.sys_path:
            if entry not in sys.path:
                sys.path.append(entry)
        body = BodyName(start.module, start.file, start.qualname).load()
        return Finished(body(member, *start.args))
    except BaseException as error:
        status = getattr(getattr(error, "status_code", None), "name", None)
        return Raised(type(error).__name__, str(error), status, traceback.format_exc())


def _read(
    connection: Connection,
    member: Member,
    messages: list[Message],
    done: threading.Event,
    group_gone: Callable[[], None],
) -> None:
    gone = False
    while not gone:
        for message in messages:
            member._take(message)
        messages, gone = connection.read()
    member._board.end()
    if not done.is_set():
        group_gone()


def main(fd: int) -> NoReturn:
    """Entry of a peer's process."""
    faulthandler.enable()
    os.set_inheritable(fd, False)
    returned = run_peer(socket.socket(fileno=fd), lambda: os._exit(1))
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    sys.exit(0 if returned else 1)
