"""A connection of the dialing end and the handshake on it. Loop thread only."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar, final

from llm_datadist._control.connection import PeerClosedError
from llm_datadist._links.context import SetupError
from llm_datadist._links.failures import failed_status
from llm_datadist._protocol.codec import ProtocolError
from llm_datadist._protocol.handshake import Handshake, Phase, Side
from llm_datadist._protocol.messages import Message, Reject, Unlink

if TYPE_CHECKING:
    from llm_datadist._control.connection import ControlConnection
    from llm_datadist._errors import LLMStatusCode
    from llm_datadist._links.context import LinkContext
    from llm_datadist._links.link import Link

__all__ = ["Call"]

_Kind = TypeVar("_Kind", bound=Message)


@final
class Call:
    """A connection and the handshake on it."""

    def __init__(self, context: LinkContext, connection: ControlConnection) -> None:
        self.connection = connection
        self.shake = Handshake(Side.DIALER, context.secret)
        self.made: Link | None = None

    def say(self, message: Message) -> None:
        """Send a message of the handshake."""
        self.shake.sent(message)
        self.connection.send(message)

    def give_up(self, status: LLMStatusCode, reason: str) -> None:
        """Tell the peer, as far as it still listens, that this dial ends here."""
        linked = self.shake.phase is Phase.LINKED
        message = (
            Unlink(reason=reason[:4000])
            if linked
            else Reject(status=int(status), reason=reason[:4000])
        )
        with contextlib.suppress(ProtocolError, PeerClosedError):
            self.say(message)

    async def hear(self, *kinds: type[_Kind]) -> _Kind:
        """Return the peer's next message, of one of these kinds; SetupError when it rejects."""
        message = await self.connection.receive()
        self.shake.received(message)
        if isinstance(message, Reject):
            raise SetupError(failed_status(message.status), message.reason)
        if not isinstance(message, kinds):
            raise ProtocolError(f"unexpected {type(message).__name__}")
        return message
