"""Messages of a link handshake on one control connection, at either end. Loop thread only."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, TypeVar, final

from llm_datadist._control.connection import PeerClosedError
from llm_datadist._errors import LLMStatusCode
from llm_datadist._links.context import SetupError
from llm_datadist._protocol.codec import ProtocolError
from llm_datadist._protocol.handshake import Handshake, Phase, Side
from llm_datadist._protocol.messages import Accept, Confirm, Message, Reject, Unlink, Welcome

if TYPE_CHECKING:
    from llm_datadist._control.connection import ControlConnection
    from llm_datadist._links.link import Link

__all__ = ["HandshakeStream"]

_Kind = TypeVar("_Kind", bound=Message)
_FAILED: Final = LLMStatusCode.LLM_LINK_FAILED
_MAX_REASON: Final = 4000


@final
class HandshakeStream:
    """Sends and receives handshake messages with their proofs, and tags after the Accept.

    Args:
        connection: A new control connection.
        side: The end that this is.
        secret: The configured secret, or None.

    Attributes:
        link: The link that has taken the connection over; while it is None the owner closes it.
    """

    def __init__(self, connection: ControlConnection, side: Side, secret: bytes | None) -> None:
        self.connection = connection
        self.handshake = Handshake(side, secret)
        self.link: Link | None = None

    def send(self, message: Message) -> None:
        """Send a message, with its proof if it carries one.

        Raises:
            PeerClosedError: The connection is over.
            ProtocolError: The message is not allowed now.
        """
        if isinstance(message, (Welcome, Confirm, Accept)):
            message = self.handshake.prove(message)
        self.handshake.sent(message)
        self.connection.send(message)
        self._authenticate_after(message)

    async def receive(self, *kinds: type[_Kind]) -> _Kind:
        """Return the peer's next message, of one of these kinds.

        Raises:
            SetupError: On the dialing end: the peer rejects the link. Before its Welcome, which
                proves the secret, the status is LLM_LINK_FAILED whatever the peer says: others are
                final for a domain, or for the re-establishing of a link.
            PeerClosedError: On the accepting end: the peer gives up; or the connection is over.
            ProtocolError: The message is not allowed now, or of another kind.
        """
        message = await self.connection.receive()
        is_welcome_pending = self.handshake.phase is Phase.GREETED
        self.handshake.received(message)
        self._authenticate_after(message)
        if isinstance(message, Reject):
            if self.handshake.side is Side.ACCEPTOR:
                raise PeerClosedError(f"it gave up: {message.reason}")
            status = _FAILED if is_welcome_pending else _failed_status(message.status)
            raise SetupError(status, message.reason)
        if not isinstance(message, kinds):
            raise ProtocolError(f"unexpected {type(message).__name__}")
        return message

    def _authenticate_after(self, message: Message) -> None:
        if isinstance(message, Accept):
            self.connection.authenticate(self.handshake.control_keys())

    def give_up(self, status: LLMStatusCode, reason: str) -> None:
        """Send the peer the reason why this end gives up; ignored if the connection is over."""
        reason = reason[:_MAX_REASON]
        is_linked = self.handshake.phase is Phase.LINKED
        message = Unlink(reason=reason) if is_linked else Reject(status=int(status), reason=reason)
        with contextlib.suppress(ProtocolError, PeerClosedError):
            self.send(message)


def _failed_status(number: int) -> LLMStatusCode:
    """Return the status of a peer's Reject; LLM_LINK_FAILED if it names no failure."""
    try:
        status = LLMStatusCode(number)
    except ValueError:
        return _FAILED
    return _FAILED if status is LLMStatusCode.LLM_SUCCESS else status
