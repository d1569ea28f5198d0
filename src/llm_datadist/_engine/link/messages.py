"""Messages between the engines of two linked instances, and their dispatch.

Every number has a width, every list and text a limit. A message that exceeds one is a protocol
error, which ends the link.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias, final

import msgspec
from msgspec.structs import force_setattr

from llm_datadist._protocol.codec import DECODE_ERRORS, ProtocolError
from llm_datadist._protocol.messages import Status, Text, Uint64
from llm_datadist._protocol.texts import shown
from llm_datadist._tracing import MAX_REQUEST_ID

if TYPE_CHECKING:
    from llm_datadist._links import Link

MAX_RANGES: Final = 1024
"""Per message."""
MAX_LEASED_BLOCKS: Final = 200_000
"""Per lease that lists them, so that it fits one message."""
MAX_ENDED: Final = 128
"""Ended transfers per message."""

Guard: TypeAlias = tuple[Uint64, Uint64]
Ranges = Annotated[tuple[tuple[Uint64, Uint64], ...], msgspec.Meta(max_length=MAX_RANGES)]
Numbers = Annotated[tuple[Uint64, ...], msgspec.Meta(min_length=1, max_length=3)]
Blocks = Annotated[bytes, msgspec.Meta(max_length=4 * MAX_LEASED_BLOCKS)]
Milliseconds = Annotated[int, msgspec.Meta(ge=1, le=(1 << 32) - 1)]
Nanoseconds = Annotated[int, msgspec.Meta(ge=0, le=(1 << 62))]
RequestId = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_REQUEST_ID)]
Word = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[ -~]*\Z")]
TraceParent = Annotated[
    str,
    msgspec.Meta(
        max_length=55, pattern=r"^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z"
    ),
]


class Remapped(msgspec.Struct, array_like=True, frozen=True, tag="remapped"):
    """Request: drop mappings and fault marks of these ranges (address, size)."""

    ranges: Ranges


class Lend(msgspec.Struct, array_like=True, frozen=True, tag="lend"):
    """Request: grant a lease on blocks of a cache of the receiver.

    Attributes:
        lease_id: Chosen by the sender, never used before on this link.
        key: The numbers of a key without the cluster id: one of a BlocksCacheKey, two of a
            CacheKeyByIdAndIndex, three of a CacheKey.
        blocks: Indices, little-endian u32; None for all that the key names.
        ttl_ms: Lifetime, counted by the receiver from receipt.
    """

    lease_id: Uint64
    key: Numbers
    blocks: Blocks | None
    ttl_ms: Milliseconds


class Renew(msgspec.Struct, array_like=True, frozen=True, tag="renew"):
    """Request: restart the lifetime of a lease."""

    lease_id: Uint64
    ttl_ms: Milliseconds


class Granted(msgspec.Struct, array_like=True, frozen=True, tag="granted"):
    """Answer to Lend and Renew."""


class Refused(msgspec.Struct, array_like=True, frozen=True, tag="refused"):
    """Answer to Lend and Renew: an LLMStatusCode, the problem, the remedy."""

    status: Status
    problem: Text
    remedy: Text

    def __post_init__(self) -> None:
        force_setattr(self, "problem", shown(self.problem))
        force_setattr(self, "remedy", shown(self.remedy))


class Faulted(msgspec.Struct, array_like=True, frozen=True, tag="faulted"):
    """Notice to the owner of a cache: these ranges (address, size) of it could not be accessed.

    The entry names the generation of the cache, so that a notice that arrives after a remap does
    not concern the new memory.
    """

    entry: Guard
    ranges: Ranges


class Marked(msgspec.Struct, array_like=True, frozen=True, tag="marked"):
    """Notice from the owner of a cache: these ranges of it, and no others, are marked now."""

    entry: Guard
    ranges: Ranges


class Release(msgspec.Struct, array_like=True, frozen=True, tag="release"):
    """Notice: the sender does not need a lease any more. An unknown id is ignored."""

    lease_id: Uint64


class EndedTransfer(msgspec.Struct, array_like=True, frozen=True):
    """A transfer that the sender has made for a request, in memory of the receiver.

    Attributes:
        request_id: The caller's name of the request: 1 to 128 printable characters.
        traceparent: The sender's span of it, by W3C Trace Context; None if it has none.
        operation: Public name of the call.
        path: The data path.
        num_bytes: Bytes that were moved; 0 if it failed.
        status: An LLMStatusCode.
        duration_ns: How long it took.
        age_ns: How long before this message it ended.
    """

    request_id: RequestId
    traceparent: TraceParent | None
    operation: Word
    path: Word
    num_bytes: Uint64
    status: Status
    duration_ns: Nanoseconds
    age_ns: Nanoseconds

    def __post_init__(self) -> None:
        if not self.request_id.isprintable():
            raise ValueError("a request id is not printable")


class Ended(msgspec.Struct, array_like=True, frozen=True, tag="ended"):
    """Notice: these transfers for requests have ended. Sent to receivers with REQUEST_IDS only."""

    transfers: Annotated[tuple[EndedTransfer, ...], msgspec.Meta(max_length=MAX_ENDED)]


Answer: TypeAlias = Granted | Refused
Message: TypeAlias = Remapped | Lend | Renew | Faulted | Marked | Release | Ended
Handlers: TypeAlias = Mapping[type, Callable[["Link", Any], Any]]

encode = msgspec.msgpack.Encoder().encode
decode_answer = msgspec.msgpack.Decoder(Answer).decode
_decode = msgspec.msgpack.Decoder(Message).decode


@final
class Inbox:
    """Decodes messages of peers and calls their handlers; runs on worker threads.

    A message that cannot be decoded, or a notice sent as a request, is a ProtocolError, which ends
    the link. Any other exception of a handler is the answer to the peer's request.

    Args:
        requests: Handlers of requests by message type; each returns the answer's bytes.
        notices: Handlers of notices by message type.
    """

    def __init__(self, requests: Handlers, notices: Handlers) -> None:
        self._requests = requests
        self._notices = notices

    def on_request(self, link: Link, body: bytes) -> bytes:
        """Answer a request; see `Hooks.on_request`."""
        answer: bytes = self._deliver(self._requests, link, body)
        return answer

    def on_notify(self, link: Link, body: bytes) -> None:
        """Take a notice; see `Hooks.on_notify`."""
        self._deliver(self._notices, link, body)

    @staticmethod
    def _deliver(handlers: Handlers, link: Link, body: bytes) -> Any:  # noqa: ANN401
        try:
            message = _decode(body)
        except DECODE_ERRORS as error:
            raise ProtocolError(f"malformed message of {len(body)} bytes: {error}") from error
        handler = handlers.get(type(message))
        if handler is None:
            raise ProtocolError(f"{type(message).__name__} was sent the wrong way")
        return handler(link, message)
