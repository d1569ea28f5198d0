"""Messages of the control connection: one struct each, tagged by the field `type`.

Every field that a peer fills has a limit of its range or length, which decoding checks;
`tests/unit/_protocol/test_caps.py` verifies that every struct has them. Unknown fields are ignored;
PROTOCOL_VERSION changes when a message changes its meaning.

The table in `handshake` defines the order of messages.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import force_setattr

from llm_datadist._protocol.texts import shown

__all__ = [
    "MESSAGES",
    "NONCE_BYTES",
    "PROTOCOL_VERSION",
    "SESSION_BYTES",
    "Accept",
    "Complete",
    "Confirm",
    "DomainHello",
    "Existing",
    "Hello",
    "Join",
    "Joined",
    "Leave",
    "Message",
    "Notify",
    "Ping",
    "Pong",
    "Ready",
    "Reject",
    "Reopen",
    "Reply",
    "Request",
    "Unlink",
    "Unlinked",
    "Welcome",
    "Yield",
]

PROTOCOL_VERSION: Final = 4
NONCE_BYTES: Final = 32
SESSION_BYTES: Final = 16
MAC_BYTES: Final = 32
MAX_LANES: Final = 64
MAX_ENDPOINT_BYTES: Final = 32 << 10
MAX_BODY_BYTES: Final = 1 << 20

Uint32 = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
Uint64 = Annotated[int, Meta(ge=0)]  # msgpack's widest integers
Nonce = Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
Session = Annotated[bytes, Meta(min_length=SESSION_BYTES, max_length=SESSION_BYTES)]
Mac = Annotated[bytes, Meta(max_length=MAC_BYTES)]  # empty without a secret
Endpoint = Annotated[bytes, Meta(max_length=MAX_ENDPOINT_BYTES)]
Text = Annotated[str, Meta(max_length=4096)]  # passed through `shown` when decoded
Host = Annotated[str, Meta(max_length=256, pattern=r"^[!-~]*\Z")]
Port = Annotated[int, Meta(ge=0, le=65535)]
Status = Annotated[int, Meta(ge=-1, le=(1 << 32) - 1)]  # an LLMStatusCode
Body = Annotated[bytes, Meta(max_length=MAX_BODY_BYTES)]
DomainName = Annotated[str, Meta(min_length=1, max_length=127)]


class Message(Struct, frozen=True, kw_only=True, tag=str.lower, tag_field="type"):
    """Base of all messages."""


def _holder(name: str, token: int) -> str:
    return f"domain:{name}/{token:x}"


class DomainHello(Struct, frozen=True, kw_only=True):
    """The domain for which a dialer dials, or which it joins over a link that is up.

    Attributes:
        name: Name of the domain.
        ranks: Cluster id to rank, the whole map.
        rank: Rank of the dialer.
        token: Random number of the dialer's call of `link`, another one after the pair has lost its
            link; distinguishes a domain from an earlier one of the same name.
        acceptor: Cluster id of the member that the dialer wants to reach.
    """

    name: DomainName
    ranks: Annotated[dict[Uint64, Uint64], Meta(max_length=16)]
    rank: Uint64
    token: Uint64 = 0
    acceptor: Uint64 | None = None

    @property
    def holder(self) -> str:
        """Name of the holder of a link for this domain, at both ends."""
        return _holder(self.name, self.token)


class Hello(Message, frozen=True, kw_only=True):
    """First message of a dialer.

    Attributes:
        version: PROTOCOL_VERSION of the dialer.
        cluster_id: Its id.
        incarnation: Random number of this initialization.
        nonce: New random bytes.
        expected_cluster_id: Cluster id that it expects; None if it accepts any.
        has_secret: Whether it has a secret configured.
        listen: Address at which it accepts links; None for a client.
        num_lanes: Lanes per direction that it wants.
        domain: Set when the link is for a domain.
        relinks: Lane session of the lost link that is being re-established; unset for calls.
        encrypt_lanes: Set inside TLS when it wants the lanes inside TLS as well.
        first_generation: Set when it is in first-generation mode.
    """

    version: Uint64
    cluster_id: Uint64
    incarnation: Uint64
    nonce: Nonce
    expected_cluster_id: Uint64 | None = None
    has_secret: bool = False
    listen: tuple[Host, Port] | None = None
    num_lanes: Annotated[int, Meta(ge=1, le=MAX_LANES)] = 1
    domain: DomainHello | None = None
    relinks: Session | None = None
    encrypt_lanes: bool | UnsetType = UNSET
    first_generation: bool | UnsetType = UNSET


class Welcome(Message, frozen=True, kw_only=True):
    """Identity of the acceptor; `mac` proves that it has the secret."""

    cluster_id: Uint64
    incarnation: Uint64
    nonce: Nonce
    mac: Mac = b""


class Confirm(Message, frozen=True, kw_only=True):
    """The dialer continues; `mac` proves the secret, `endpoint` is opaque engine data."""

    endpoint: Endpoint
    mac: Mac = b""


class Accept(Message, frozen=True, kw_only=True):
    """The acceptor accepts the link, with `num_lanes` lanes per direction that name `session`.

    Either end may ask for more later, up to `most_lanes`, or `num_lanes` if that is more.
    The session lasts as long as the link, since replacements of lost lanes name it too. All lanes
    use TLS when `encrypt_lanes` is set, which it is when either end wants that.
    """

    session: Session
    num_lanes: Annotated[int, Meta(ge=1, le=MAX_LANES)]
    endpoint: Endpoint
    most_lanes: Annotated[int, Meta(ge=1, le=MAX_LANES)] = 1
    mac: Mac = b""
    encrypt_lanes: bool | UnsetType = UNSET


class Existing(Message, frozen=True, kw_only=True):
    """The two ends are linked already, and the acceptor has verified that the link is alive."""


class Yield(Message, frozen=True, kw_only=True):
    """Both dialed: the acceptor's dial continues; the connection closes when that has ended."""


class Reject(Message, frozen=True, kw_only=True):
    """The link is refused, with an LLMStatusCode and a text for the caller at the other end."""

    status: Status
    reason: Text

    def __post_init__(self) -> None:
        force_setattr(self, "reason", shown(self.reason))


class Complete(Message, frozen=True, kw_only=True):
    """The dialer has opened every lane."""


class Ready(Message, frozen=True, kw_only=True):
    """The acceptor has installed the link."""


class Ping(Message, frozen=True, kw_only=True):
    """Request for a Pong, to check that the link is alive; keepalives have id 0."""

    id: Uint64


class Pong(Message, frozen=True, kw_only=True):
    """Answer to the Ping of that id."""

    id: Uint64


class Reopen(Message, frozen=True, kw_only=True):
    """The acceptor needs more lanes on which to send requests: the dialer must open that many."""

    num_lanes: Annotated[int, Meta(ge=1, le=MAX_LANES)]


class Request(Message, frozen=True, kw_only=True):
    """Engine message that requires a Reply; the body is opaque engine data."""

    id: Uint64
    body: Body


class Reply(Message, frozen=True, kw_only=True):
    """Answer to the Request of that id: a body or an error."""

    id: Uint64
    body: Body = b""
    error: Text | None = None

    def __post_init__(self) -> None:
        if self.error is not None:
            force_setattr(self, "error", shown(self.error))


class Notify(Message, frozen=True, kw_only=True):
    """Engine message without an answer."""

    body: Body


class Unlink(Message, frozen=True, kw_only=True):
    """The sender takes its end of the link down; the receiver must do the same."""

    reason: Text = ""

    def __post_init__(self) -> None:
        force_setattr(self, "reason", shown(self.reason))


class Unlinked(Message, frozen=True, kw_only=True):
    """The sender's end is gone: no transfer of the link touches its memory."""


class Join(Message, frozen=True, kw_only=True):
    """The dialer of a domain asks the acceptor to enter the link for it; answered by Joined."""

    id: Uint64
    domain: DomainHello


class Joined(Message, frozen=True, kw_only=True):
    """Answer to the Join of that id: LLM_SUCCESS, or why the acceptor did not enter the link."""

    id: Uint64
    status: Status
    reason: Text = ""

    def __post_init__(self) -> None:
        force_setattr(self, "reason", shown(self.reason))


class Leave(Message, frozen=True, kw_only=True):
    """The sender's part of a domain has ended; the link may stay for others.

    Attributes:
        name: Name of the domain.
        token: Of the dialer's hello.
        complete: Whether the sender had been linked to all members, and none had died.
        reason: Why its part failed; empty after `unlink`.
    """

    name: DomainName
    token: Uint64
    complete: bool
    reason: Text = ""

    def __post_init__(self) -> None:
        force_setattr(self, "reason", shown(self.reason))

    @property
    def holder(self) -> str:
        """Name of the holder of a link for this domain, at both ends."""
        return _holder(self.name, self.token)


#: The class of each kind of message.
MESSAGES: Final[tuple[type[Message], ...]] = tuple(Message.__subclasses__())
