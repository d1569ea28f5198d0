"""Messages of the control connection: one typed struct each, told apart by their `type` field.

Every field that a peer fills has a width and a cap here, so that a decoded message is already of
sane size; `tests/unit/_protocol/test_caps.py` holds every struct that a peer fills to that. Fields
that this version does not know are ignored; PROTOCOL_VERSION changes when a message changes its
meaning.

The order in which they may be sent is the table in `handshake`.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import force_setattr

from llm_datadist._protocol.texts import shown

__all__ = [
    "NONCE_BYTES",
    "PROTOCOL_VERSION",
    "SESSION_BYTES",
    "Accept",
    "Complete",
    "Confirm",
    "DomainHello",
    "Existing",
    "Hello",
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

PROTOCOL_VERSION: Final = 3
NONCE_BYTES: Final = 32
SESSION_BYTES: Final = 16
MAC_BYTES: Final = 32
MAX_LANES: Final = 64
MAX_ENDPOINT_BYTES: Final = 32 << 10
MAX_BODY_BYTES: Final = 1 << 20

Uint32 = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
Uint64 = Annotated[int, Meta(ge=0)]  # msgpack has no wider integers
Nonce = Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
Session = Annotated[bytes, Meta(min_length=SESSION_BYTES, max_length=SESSION_BYTES)]
Mac = Annotated[bytes, Meta(max_length=MAC_BYTES)]  # empty where no secret is configured
Endpoint = Annotated[bytes, Meta(max_length=MAX_ENDPOINT_BYTES)]
Text = Annotated[str, Meta(max_length=4096)]  # `shown` once it is in a message
Host = Annotated[str, Meta(max_length=256, pattern=r"^[!-~]*\Z")]
Port = Annotated[int, Meta(ge=0, le=65535)]
Status = Annotated[int, Meta(ge=-1, le=(1 << 32) - 1)]  # an LLMStatusCode
Body = Annotated[bytes, Meta(max_length=MAX_BODY_BYTES)]


class Message(Struct, frozen=True, kw_only=True, tag=str.lower, tag_field="type"):
    """Base of all messages."""


class DomainHello(Struct, frozen=True, kw_only=True):
    """What a dialer says about the domain that it dials for.

    Attributes:
        name: Name of the domain.
        ranks: Cluster id to rank, the whole map.
        rank: Rank of the dialer.
        token: Random number of the dialer's call of `link`; it tells a domain from an earlier one
            of the same name.
        acceptor: Cluster id of the member that the dialer means to reach.
    """

    name: Annotated[str, Meta(min_length=1, max_length=127)]
    ranks: Annotated[dict[Uint64, Uint64], Meta(max_length=16)]
    rank: Uint64
    token: Uint64 = 0
    acceptor: Uint64 | None = None

    @property
    def holder(self) -> str:
        """Name under which a link is held for this domain, on both ends."""
        return f"domain:{self.name}/{self.token:x}"


class Hello(Message, frozen=True, kw_only=True):
    """First message of a dialer.

    Attributes:
        version: PROTOCOL_VERSION of the dialer.
        cluster_id: Its id.
        incarnation: Random number of this life of the instance.
        nonce: Fresh random bytes.
        expected_cluster_id: The id that it was told to find; None when it takes any.
        has_secret: Whether it has a secret configured.
        listen: Where it accepts links itself; None for a client.
        num_lanes: Data lanes that it wants for each direction.
        domain: Set when the link is for a domain.
        relinks: Lane session of the lost link that this one is to follow; set when nobody has asked
            for it at the dialing end just now.
        encrypt_lanes: Set inside TLS, when it wants the lanes inside TLS as well.
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


class Welcome(Message, frozen=True, kw_only=True):
    """Who the acceptor is; `mac` proves that it has the secret."""

    cluster_id: Uint64
    incarnation: Uint64
    nonce: Nonce
    mac: Mac = b""


class Confirm(Message, frozen=True, kw_only=True):
    """The dialer goes on; `mac` proves the secret, `endpoint` is the engine's business."""

    endpoint: Endpoint
    mac: Mac = b""


class Accept(Message, frozen=True, kw_only=True):
    """The acceptor wants the link. Lanes name `session`; `num_lanes` go each way.

    Lanes that replace lost ones name it too: the session lasts as long as the link. All of them are
    inside TLS when `encrypt_lanes` is set, which it is when either end wants that.
    """

    session: Session
    num_lanes: Annotated[int, Meta(ge=1, le=MAX_LANES)]
    endpoint: Endpoint
    mac: Mac = b""
    encrypt_lanes: bool | UnsetType = UNSET


class Existing(Message, frozen=True, kw_only=True):
    """The two are linked already, and the acceptor has just seen that link alive."""


class Yield(Message, frozen=True, kw_only=True):
    """Both dialed: the acceptor's own dial goes on, and is over when this connection closes."""


class Reject(Message, frozen=True, kw_only=True):
    """No link; `status` is an LLMStatusCode, `reason` the text for the dialer's caller."""

    status: Status
    reason: Text

    def __post_init__(self) -> None:
        force_setattr(self, "reason", shown(self.reason))


class Complete(Message, frozen=True, kw_only=True):
    """The dialer has opened every lane."""


class Ready(Message, frozen=True, kw_only=True):
    """The acceptor has installed the link."""


class Ping(Message, frozen=True, kw_only=True):
    """Asks for a Pong, to see that the link is alive; as a heartbeat with id 0."""

    id: Uint64


class Pong(Message, frozen=True, kw_only=True):
    """Answer to the Ping of that id."""

    id: Uint64


class Reopen(Message, frozen=True, kw_only=True):
    """The acceptor has lost lanes on which it asks: the dialer, who can, opens that many anew."""

    num_lanes: Annotated[int, Meta(ge=1, le=MAX_LANES)]


class Request(Message, frozen=True, kw_only=True):
    """Engine message that wants a Reply; the body is the engine's business."""

    id: Uint64
    body: Body


class Reply(Message, frozen=True, kw_only=True):
    """Answer to the Request of that id: a body, or why there is none."""

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
    """The sender's end of the link is going; the receiver's end has to go too."""

    reason: Text = ""

    def __post_init__(self) -> None:
        force_setattr(self, "reason", shown(self.reason))


class Unlinked(Message, frozen=True, kw_only=True):
    """No transfer of the link touches the sender's memory any more."""
