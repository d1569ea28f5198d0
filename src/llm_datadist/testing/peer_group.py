"""Runs functions ("bodies") as peers of each other, in fresh processes or in threads.

    def serve(member, size):                     # at the top level of a module
        ...
        member.set_event("ready", instance.listen_address)
        member.wait_end()

    with PeerGroup() as group:
        server = group.start(serve, 4096)
        address = group.wait_for("ready")
        server.kill()
        assert server.wait() == Killed(signal.SIGKILL)

Arguments, messages, event values and results are msgpack data; no code is pickled.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Literal

from llm_datadist._types.named_calls import names_calls
from llm_datadist.testing._board import Board
from llm_datadist.testing._bodies import Body, BodyName
from llm_datadist.testing._launch import Launched, LaunchedProcess, LaunchedThread
from llm_datadist.testing._wire import (
    Arrived,
    EventSet,
    Message,
    Released,
    Sent,
    Start,
    Stop,
    connection_pair,
)
from llm_datadist.testing.exits import (
    Exit,
    Exited,
    Finished,
    GroupClosed,
    Killed,
    PeerFailed,
    Raised,
    TimedOut,
    Value,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

_END_WITHIN_S = 10.0
_FAILED_END_WITHIN_S = 0.2


class Peer:
    """Group's end of one running body. Thread-safe.

    Attributes:
        name: Its name in errors and logs.
        index: Its number in the group, from 0.
        exit: How it ended; None while it runs.
    """

    def __init__(
        self,
        group: PeerGroup,
        start: Start,
        env: Mapping[str, str],
        command_prefix: Sequence[str] = (),
    ) -> None:
        self.name: str = start.name
        self.index: int = start.index
        self.exit: Exit | None = None
        self._group = group
        self._board = Board(self._failure)
        self._connection, sock = connection_pair()
        self._launched: Launched = (
            LaunchedThread(sock, start.name)
            if group.kind == "thread"
            else LaunchedProcess(sock, env, command_prefix)
        )
        self._signaled = False
        self._looked_at = False
        self._connection.send(start)
        self._reader = threading.Thread(target=self._read, name=f"reader-{self.name}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int | None:
        """Process id; None for a thread."""
        return self._launched.pid

    def send(self, value: Value) -> None:
        """Send a value; the body's `Member.receive` returns it."""
        self._connection.send(Sent(value))

    def receive(self, timeout_s: float | None = None) -> Value:
        """Wait for the next value of `Member.send`.

        Raises:
            PeerFailed: The peer has ended and nothing more can come.
            TimeoutError: Nothing came in time.
        """
        return self._board.receive(self._group.bound(timeout_s))

    def wait(self, timeout_s: float | None = None) -> Exit:
        """Wait for the end of the peer and return it; TimedOut if the peer still runs."""
        waited_s = self._group.bound(timeout_s)
        self._board.wait_end(waited_s)
        if self.exit is None:
            return TimedOut(waited_s)
        self._looked_at = True
        return self.exit

    def value(self, timeout_s: float | None = None) -> Value:
        """Wait for the end of the peer and return what its body returned.

        Raises:
            PeerFailed: It ended otherwise, or not in time.
        """
        exit_ = self.wait(timeout_s)
        if not isinstance(exit_, Finished):
            raise PeerFailed(self.name, exit_)
        return exit_.value

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; `wait` returns after it has taken effect. RuntimeError for a thread."""
        self._signaled = True
        self._launched.signal(number)

    def freeze(self) -> None:
        """Stop every thread of the process; returns when they have stopped."""
        self._launched.signal(signal.SIGSTOP)
        self._launched.wait_stopped()

    def thaw(self) -> None:
        """Continue a frozen process."""
        self._launched.signal(signal.SIGCONT)

    def _read(self) -> None:
        report: Finished | Raised | None = None
        ended = False
        while not ended:
            messages, ended = self._launched.read(self._connection)
            for message in messages:
                if isinstance(message, Finished | Raised):
                    report = message
                else:
                    self._take(message)
        self.exit = self._launched.exit(report)
        self._connection.close()
        self._board.end()
        self._group._board.poke()

    def _take(self, message: Message) -> None:
        match message:
            case Sent(value):
                self._board.deliver(value)
            case EventSet(name, value):
                self._group.set_event(name, value)
            case Arrived(name, parties):
                self._group._arrived(name, parties)

    def _failure(self) -> PeerFailed | None:
        return None if self.exit is None else PeerFailed(self.name, self.exit)

    def _unexpected(self) -> bool:
        """Return whether it failed by itself, and no call of `wait` has returned that."""
        if self._looked_at or self._signaled:
            return False
        if isinstance(self.exit, Raised):
            return self.exit.type_name != GroupClosed.__name__
        return isinstance(self.exit, Killed | Exited)


@names_calls
class PeerGroup:
    """Peers that run at the same time; a context manager that ends them all.

    Args:
        kind: "process" (a fresh interpreter each) or "thread"; threads take no signals.
        timeout_s: Default bound of every wait, also in the bodies.
        env: Added to the environment of the processes.

    On a normal exit of the context, the peers' waits raise GroupClosed and the peers get some
    seconds to end; PeerFailed is raised if one does not, or has failed and no `wait` has returned
    that. On an exit by an exception, all are killed at once.
    """

    def __init__(
        self,
        kind: Literal["process", "thread"] = "process",
        *,
        timeout_s: float = 30.0,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self.peers: list[Peer] = []
        self._timeout_s = timeout_s
        self._env = dict(env or {})
        self._lock = threading.Lock()
        self._board = Board(self._hopeless)
        self._arrivals: Counter[str] = Counter()

    @property
    def takes_signals(self) -> bool:
        """Whether `kill`, `freeze` and `thaw` work."""
        return self.kind == "process"

    def start(
        self,
        body: Body,
        *args: Value,
        name: str | None = None,
        command_prefix: Sequence[str] = (),
    ) -> Peer:
        """Run `body(member, *args)` as a new peer.

        Args:
            body: A top-level function, or "package.module:function".
            args: Plain data (see `exits.Value`).
            name: Default: the function's name and the peer's number.
            command_prefix: Command that runs the interpreter, as `("ip", "netns", "exec",
                "host1")`; it must pass descriptors on. Signals go to its process, which is the
                body's only if the command replaces itself with what it runs.

        Raises:
            ValueError: A prefix for a thread.
        """
        if command_prefix and self.kind == "thread":
            raise ValueError("a thread runs under no command_prefix; use PeerGroup('process')")
        found = BodyName.of(body)
        with self._lock:
            index = len(self.peers)
            start = Start(
                *found,
                args=list(args),
                name=name or f"{found.qualname}-{index}",
                index=index,
                timeout_s=self._timeout_s,
                sys_path=sys.path if self.kind == "process" else [],
            )
            peer = Peer(self, start, self._env, command_prefix)
            for event, value in self._board.events.items():
                peer._connection.send(EventSet(event, value))
            self.peers.append(peer)
            return peer

    def set_event(self, name: str, value: Value = None) -> None:
        """Set an event for all peers, including those that start later."""
        with self._lock:
            self._board.set_event(name, value)
            self._tell(EventSet(name, value))

    def wait_for(self, name: str, timeout_s: float | None = None) -> Value:
        """Wait until a member has set an event; return the event's value.

        Raises:
            PeerFailed: Some peer raised, or all have ended, and the event is not set.
            TimeoutError: It was not set in time.
        """
        return self._board.event(name, self.bound(timeout_s))

    def barrier(self, name: str, parties: int, timeout_s: float | None = None) -> None:
        """Wait, as one party, until `parties` members are at the barrier; reusable."""
        release = self._board.arrive(name)
        self._arrived(name, parties)
        self._board.pass_barrier(name, release, self.bound(timeout_s))

    def wait(self, timeout_s: float | None = None) -> list[Exit]:
        """Wait for the end of all peers, with one bound; return exits in the order of start."""
        deadline = time.monotonic() + self.bound(timeout_s)
        return [peer.wait(max(deadline - time.monotonic(), 0)) for peer in self.peers]

    def values(self, timeout_s: float | None = None) -> list[Value]:
        """Wait for the end of all peers; return what they returned, or raise PeerFailed."""
        deadline = time.monotonic() + self.bound(timeout_s)
        return [peer.value(max(deadline - time.monotonic(), 0)) for peer in self.peers]

    def close(self, *, grace_s: float = _END_WITHIN_S) -> list[Peer]:
        """End all peers, by force after `grace_s`; return those that were forced; idempotent."""
        with self._lock:
            self._tell(Stop())
        deadline = time.monotonic() + grace_s
        forced = []
        for peer in self.peers:
            if not peer._board.wait_end(max(deadline - time.monotonic(), 0)):
                forced.append(peer)
                if self.takes_signals:
                    peer.kill()
        for peer in self.peers:
            if self.takes_signals or peer not in forced:
                peer._reader.join()
        return forced

    def bound(self, timeout_s: float | None) -> float:
        """Return the bound of a wait, given its `timeout_s`."""
        return self._timeout_s if timeout_s is None else timeout_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self.close(grace_s=_FAILED_END_WITHIN_S)
            return
        forced = self.close()
        for peer in self.peers:
            if peer in forced:
                raise PeerFailed(peer.name, TimedOut(_END_WITHIN_S))
            if peer.exit is not None and peer._unexpected():
                raise PeerFailed(peer.name, peer.exit)

    def _tell(self, message: Message) -> None:
        for peer in self.peers:
            if peer.exit is None:
                peer._connection.send(message)

    def _arrived(self, barrier: str, parties: int) -> None:
        with self._lock:
            self._arrivals[barrier] += 1
            if self._arrivals[barrier] < parties:
                return
            self._arrivals[barrier] = 0
            self._board.release(barrier)
            self._tell(Released(barrier))

    def _hopeless(self) -> PeerFailed | None:
        """Return why no wait can be fulfilled: a peer failed by itself, or all have ended."""
        ended = [peer for peer in self.peers if peer.exit is not None]
        for peer in ended:
            if peer._unexpected():
                return peer._failure()
        if ended and len(ended) == len(self.peers):
            return ended[-1]._failure()
        return None
