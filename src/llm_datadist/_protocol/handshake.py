"""The handshake of a link, without I/O: message order, proofs of the secret, lane key.

    dialer                                     acceptor
      Hello      ------------------------------>           who I am, a nonce
                 <------------------------------ Welcome   who I am, a nonce, proof
      Confirm    ------------------------------>           proof, endpoint
                 <------------------------------ Accept    proof, endpoint, lane session
      (lanes are opened and prove the lane key)            | Existing | Yield | Reject
      Complete   ------------------------------>
                 <------------------------------ Ready     the link is up on both ends

A proof is HMAC-SHA256 with the secret over the sender's side, all messages before, and the message
itself. So it covers both nonces, ids and incarnations, and is invalid in another handshake or in
the other direction. The lane key is derived from the secret and the same messages; so are the
proofs on the published pages of two ends on one host. Without a secret proofs are empty, and the
lane key only binds a lane to its handshake.

Each end passes all messages that it sends and receives to one `Handshake`, which raises
`ProtocolError` for a message that is out of order.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from enum import Enum, auto
from types import MappingProxyType
from typing import Final, TypeAlias, TypeVar

from msgspec.structs import replace

from llm_datadist._protocol.codec import ProtocolError, encode_message
from llm_datadist._protocol.control_tags import ControlKeys
from llm_datadist._protocol.messages import (
    NONCE_BYTES,
    Accept,
    Complete,
    Confirm,
    Existing,
    Hello,
    Join,
    Joined,
    Leave,
    Message,
    Notify,
    Ping,
    Pong,
    Ready,
    Reject,
    Reopen,
    Reply,
    Request,
    Unlink,
    Unlinked,
    Welcome,
    Yield,
)

__all__ = ["TRANSITIONS", "Handshake", "Phase", "SecretMismatchError", "Side", "fresh_nonce"]

_Proof = TypeVar("_Proof", bound="Welcome | Confirm | Accept")


class Side(Enum):
    """An end of the handshake."""

    DIALER = "dialer"
    ACCEPTOR = "acceptor"

    @property
    def other(self) -> Side:
        """The opposite end."""
        return Side.ACCEPTOR if self is Side.DIALER else Side.DIALER


class Phase(Enum):
    """Progress of the handshake."""

    NEW = auto()
    GREETED = auto()
    WELCOMED = auto()
    CONFIRMED = auto()
    ACCEPTED = auto()
    COMPLETED = auto()
    LINKED = auto()
    OVER = auto()  # no message may follow


_Rules: TypeAlias = dict[tuple[Phase, type[Message]], tuple[frozenset[Side], Phase]]

_EITHER: Final = frozenset(Side)
_DIALER: Final = frozenset({Side.DIALER})
_ACCEPTOR: Final = frozenset({Side.ACCEPTOR})

_HANDSHAKE: Final[_Rules] = {
    (Phase.NEW, Hello): (_DIALER, Phase.GREETED),
    (Phase.GREETED, Welcome): (_ACCEPTOR, Phase.WELCOMED),
    (Phase.GREETED, Reject): (_ACCEPTOR, Phase.OVER),
    (Phase.WELCOMED, Confirm): (_DIALER, Phase.CONFIRMED),
    (Phase.WELCOMED, Reject): (_EITHER, Phase.OVER),
    (Phase.CONFIRMED, Accept): (_ACCEPTOR, Phase.ACCEPTED),
    (Phase.CONFIRMED, Existing): (_ACCEPTOR, Phase.OVER),
    (Phase.CONFIRMED, Yield): (_ACCEPTOR, Phase.OVER),
    (Phase.CONFIRMED, Reject): (_ACCEPTOR, Phase.OVER),
    (Phase.ACCEPTED, Complete): (_DIALER, Phase.COMPLETED),
    (Phase.ACCEPTED, Reject): (_EITHER, Phase.OVER),
    (Phase.COMPLETED, Ready): (_ACCEPTOR, Phase.LINKED),
    (Phase.COMPLETED, Reject): (_EITHER, Phase.OVER),
}
_CONVERSATION: Final[_Rules] = {
    (Phase.LINKED, kind): (_EITHER, Phase.LINKED)
    for kind in (Ping, Pong, Request, Reply, Notify, Join, Joined, Leave, Unlink, Unlinked)
} | {
    (Phase.LINKED, Reopen): (_ACCEPTOR, Phase.LINKED),
    (Phase.LINKED, Reject): (_DIALER, Phase.OVER),  # the dialer gave up before it read the Ready
}
#: (phase, message) -> (sides that may send it, phase after it). All else is a violation.
TRANSITIONS: Final = MappingProxyType(_HANDSHAKE | _CONVERSATION)


class SecretMismatchError(ProtocolError):
    """The peer's proof is wrong: the two ends do not have the same secret."""


def fresh_nonce() -> bytes:
    """Return a new random nonce."""
    return secrets.token_bytes(NONCE_BYTES)


class Handshake:
    """State of one end of a handshake. Not thread-safe.

    Args:
        side: The end.
        secret: The configured secret, or None.
    """

    def __init__(self, side: Side, secret: bytes | None) -> None:
        self.side = side
        self.phase = Phase.NEW
        self._secret = secret
        self._transcript = hashlib.sha256(b"llm-datadist link 2")

    def prove(self, message: _Proof) -> _Proof:
        """Return a message that is about to be sent with its proof."""
        return replace(message, mac=self._mac(message, self.side))

    def sent(self, message: Message) -> None:
        """Record a message that this end sends; ProtocolError when it is not allowed."""
        self._step(message, self.side)

    def received(self, message: Message) -> None:
        """Check and record a message of the peer.

        Raises:
            SecretMismatchError: Its proof is wrong.
            ProtocolError: The message is not allowed now.
        """
        after = self._after(message, self.side.other)
        if isinstance(message, (Welcome, Confirm, Accept)):
            expected = self._mac(message, self.side.other)
            if not hmac.compare_digest(message.mac, expected):
                self.phase = Phase.OVER
                raise SecretMismatchError("the peer has another secret")
        self._note(message, after)

    def lane_key(self) -> bytes:
        """Return the key that the lanes of this link prove; the same on both ends."""
        if self.phase is not Phase.ACCEPTED:
            raise ProtocolError(f"no lane key in phase {self.phase.name}")
        return self._keyed(b"lane key", b"")

    def control_keys(self) -> ControlKeys:
        """Return this end's keys for the tags of the control messages after the Accept."""
        if self.phase is not Phase.ACCEPTED:
            raise ProtocolError(f"no keys of control messages in phase {self.phase.name}")
        send, receive = (
            self._keyed(b"messages of the " + side.value.encode(), b"")
            for side in (self.side, self.side.other)
        )
        return ControlKeys(send, receive)

    def page_proof(self, side: Side) -> bytes:
        """Return the 16-byte proof that the published page of the end `side` shows to the other."""
        if self.phase is not Phase.ACCEPTED:
            raise ProtocolError(f"no proof of a page in phase {self.phase.name}")
        return self._keyed(b"page of the " + side.value.encode(), b"")[:16]

    def _step(self, message: Message, sender: Side) -> None:
        self._note(message, self._after(message, sender))

    def _after(self, message: Message, sender: Side) -> Phase:
        senders, after = TRANSITIONS.get((self.phase, type(message)), (frozenset(), Phase.OVER))
        if sender not in senders:
            raise ProtocolError(
                f"{type(message).__name__} of the {sender.value} in phase {self.phase.name}"
            )
        return after

    def _note(self, message: Message, after: Phase) -> None:
        if self.phase is not Phase.LINKED:
            body = encode_message(message)
            self._transcript.update(len(body).to_bytes(4, "little") + body)
        self.phase = after

    def _mac(self, message: _Proof, sender: Side) -> bytes:
        if self._secret is None:
            return b""
        return self._keyed(sender.value.encode(), encode_message(replace(message, mac=b"")))

    def _keyed(self, label: bytes, body: bytes) -> bytes:
        data = label + b"\0" + self._transcript.digest() + body
        return hmac.digest(self._secret or b"llm-datadist without a secret", data, "sha256")
