"""The message exchange on the control connection of a link that is up. Loop thread only."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING, Final, TypeAlias, final

from llm_datadist._control.connection import PeerClosedError
from llm_datadist._control.events import LoopEvent
from llm_datadist._protocol.codec import ProtocolError
from llm_datadist._protocol.messages import (
    Join,
    Joined,
    Leave,
    Message,
    Notify,
    Ping,
    Pong,
    Reject,
    Reopen,
    Reply,
    Request,
    Unlink,
    Unlinked,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llm_datadist._control.connection import ControlConnection
    from llm_datadist._protocol.messages import DomainHello

__all__ = ["Conversation", "RemoteError"]

_Answer: TypeAlias = Pong | Reply | Joined
_INBOX: Final = 64


class RemoteError(Exception):
    """The peer answered a request with an error."""


@final
class Conversation:
    """The message exchange on the connection of a link that is up. Loop thread only.

    Pings are answered immediately. Unlink, Unlinked, Reopen, Join and Leave go to `on_signal`
    immediately; a Reject is passed on as an Unlink. Engine messages go to `on_message` one at a
    time, in order. Nothing is read while 64 of them wait, or while the peer does not read its
    answers, so that a fast peer is slowed down instead of filling memory.

    Args:
        connection: The connection, after its handshake.
        on_message: Called with each Request and Notify; returns the Reply to a Request; may raise
            ProtocolError, which ends the connection.
        on_signal: Called with each Unlink, Unlinked, Reopen, Join and Leave; may raise
            ProtocolError.
        on_closed: Called once with the reason when the connection is over, whatever the cause.

    Attributes:
        num_received: Messages received.
        ended: Set when the connection is over and everything received has been handled.
    """

    def __init__(
        self,
        connection: ControlConnection,
        on_message: Callable[[Request | Notify], Awaitable[Reply | None]],
        on_signal: Callable[[Message], None],
        on_closed: Callable[[str], None],
    ) -> None:
        self.connection = connection
        self.num_received: int = 0
        self.ended: LoopEvent = LoopEvent()
        connection.trust()
        self._on_message = on_message
        self._on_signal = on_signal
        self._on_closed = on_closed
        self._ids = itertools.count(1)
        self._violation: str | None = None
        self._waiting: dict[int, asyncio.Future[_Answer]] = {}
        # Made with the first engine message, which most links never get.
        self._inbox: asyncio.Queue[Request | Notify] | None = None
        self._handling: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Receive messages until the connection is over."""
        reason = "closed at this end"
        try:
            while True:
                message = await self.connection.receive()
                self.num_received += 1
                await self._receive(message)
        except (PeerClosedError, ProtocolError) as error:
            reason = self._violation or str(error)
        finally:
            if self._handling is not None:
                self._handling.cancel()
            self.connection.abort()
            self._answer_none(reason)
            self._on_closed(reason)
            # Break the reference cycle with the link.
            del self._on_message, self._on_signal, self._on_closed
            self.ended.set()

    def finish(self, reason: str, seconds: float) -> None:
        """Fail pending requests with `reason`; then see ControlConnection.finish."""
        self._answer_none(reason)
        self.connection.finish(seconds)

    def _answer_none(self, reason: str) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(PeerClosedError(reason))

    async def ask(self, body: bytes) -> bytes:
        """Send a Request and return the body of its Reply; the caller sets the time limit.

        Raises:
            PeerClosedError: The connection was over first.
            RemoteError: The peer answered with an error.
            ValueError: The body is too large.
        """
        reply = await self._exchange(Request(id=next(self._ids), body=body))
        if not isinstance(reply, Reply):
            raise RemoteError("no reply")
        if reply.error is not None:
            raise RemoteError(reply.error)
        return reply.body

    async def ping(self) -> None:
        """Return when the peer has answered; the caller sets the time limit.

        Raises:
            PeerClosedError: The connection was over first.
        """
        await self._exchange(Ping(id=next(self._ids)))

    async def join(self, domain: DomainHello) -> Joined:
        """Send a Join and return its answer; the caller sets the time limit.

        Raises:
            PeerClosedError: The connection was over first.
            RemoteError: The peer answered with another message.
        """
        answer = await self._exchange(Join(id=next(self._ids), domain=domain))
        if not isinstance(answer, Joined):
            raise RemoteError("no answer to a Join")
        return answer

    def send_keepalive(self) -> None:
        """Send a Ping without waiting for the answer, which counts in `num_received`."""
        with contextlib.suppress(PeerClosedError):
            self.connection.send(Ping(id=0))

    async def _exchange(self, question: Request | Ping | Join) -> _Answer:
        answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._waiting[question.id] = answer
        try:
            self.connection.send(question)
            return await answer
        finally:
            del self._waiting[question.id]

    async def _receive(self, message: Message) -> None:
        if isinstance(message, Ping):
            with contextlib.suppress(PeerClosedError):  # messages may follow all the same
                self.connection.send(Pong(id=message.id))
                await self.connection.drain()
        elif isinstance(message, (Pong, Reply, Joined)):
            answer = self._waiting.get(message.id)
            if answer is not None and not answer.done():
                answer.set_result(message)
        elif isinstance(message, (Request, Notify)):
            await self._put(message)
        elif isinstance(message, (Unlink, Unlinked, Reopen, Leave)):
            self._on_signal(message)
        elif isinstance(message, Join):
            self._on_signal(message)
            with contextlib.suppress(PeerClosedError):
                await self.connection.drain()
        elif isinstance(message, Reject):  # the dialer gave up before it read the Ready
            self._on_signal(Unlink(reason=message.reason))
        else:
            raise ProtocolError(f"{type(message).__name__} on a link that is up")

    async def _put(self, message: Request | Notify) -> None:
        """Have a message handled after those before it; wait while too many are."""
        if self._inbox is None:
            self._inbox = asyncio.Queue(_INBOX)
            self._handling = asyncio.ensure_future(self._handle(self._inbox))
        await self._inbox.put(message)

    async def _handle(self, inbox: asyncio.Queue[Request | Notify]) -> None:
        while True:
            message = await inbox.get()
            try:
                reply = await self._on_message(message)
                if reply is not None:
                    self._send_reply(reply)
                    await self.connection.drain()
            except PeerClosedError:
                return
            except ProtocolError as error:
                self._violation = str(error)
                self.connection.abort()
                return

    def _send_reply(self, reply: Reply) -> None:
        try:
            self.connection.send(reply)
        except ValueError as error:
            self.connection.send(Reply(id=reply.id, error=f"the answer is too large: {error}"))
