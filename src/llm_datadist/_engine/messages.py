"""What the engines of two linked instances say to each other: one union, decoded in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, final

import msgspec

from llm_datadist._protocol.messages import Uint64

if TYPE_CHECKING:
    from llm_datadist._links import Link


class Remapped(msgspec.Struct, array_like=True, frozen=True, tag="remapped"):
    """Request: drop what you hold of these ranges (address, size)."""

    ranges: tuple[tuple[Uint64, Uint64], ...]


class Lend(msgspec.Struct, array_like=True, frozen=True, tag="lend"):
    """Request: lease blocks of one of your caches to me.

    Attributes:
        lease_id: Chosen by the sender, never used before on this link.
        key: The numbers of a key without the cluster id: one of a BlocksCacheKey, two of a
            CacheKeyByIdAndIndex, three of a CacheKey.
        blocks: Indices, little-endian u32; None for all that the key names.
        ttl_ms: How long, counted by the receiver from its receipt.
    """

    lease_id: int
    key: tuple[int, ...]
    blocks: bytes | None
    ttl_ms: int


class Renew(msgspec.Struct, array_like=True, frozen=True, tag="renew"):
    """Request: count the time of a lease anew."""

    lease_id: int
    ttl_ms: int


class Granted(msgspec.Struct, array_like=True, frozen=True, tag="granted"):
    """Answer to Lend and Renew."""


class Refused(msgspec.Struct, array_like=True, frozen=True, tag="refused"):
    """Answer to Lend and Renew: an LLMStatusCode, what is wrong, what to do."""

    status: int
    problem: str
    remedy: str


class Faulted(msgspec.Struct, array_like=True, frozen=True, tag="faulted"):
    """Notice to the owner of a cache: these ranges (address, size) of it could not be accessed.

    The entry tells which life of the cache it was, so that a notice that is late, after a remap,
    does not blame the new memory.
    """

    entry: tuple[Uint64, Uint64]
    ranges: tuple[tuple[Uint64, Uint64], ...]


class Marked(msgspec.Struct, array_like=True, frozen=True, tag="marked"):
    """Notice from the owner of a cache: these ranges of it, and no others, are marked now."""

    entry: tuple[int, int]
    ranges: tuple[tuple[int, int], ...]


class Release(msgspec.Struct, array_like=True, frozen=True, tag="release"):
    """Notice: a lease is not needed any more, if there is one of that id."""

    lease_id: int


Answer: TypeAlias = Granted | Refused
Message: TypeAlias = Remapped | Lend | Renew | Faulted | Marked | Release
Handlers: TypeAlias = Mapping[type, Callable[["Link", Any], Any]]

encode = msgspec.msgpack.Encoder().encode
decode_answer = msgspec.msgpack.Decoder(Answer).decode
_decode = msgspec.msgpack.Decoder(Message).decode


@final
class Inbox:
    """Hands what peers say to whom it concerns; runs on worker threads.

    What cannot be decoded, or comes the wrong way (a notice as a request), raises: the peer gets
    the text as the answer to its request.

    Args:
        requests: Who answers which message; each returns the answer's bytes.
        notices: Who takes which message.
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
        message = _decode(body)
        handler = handlers.get(type(message))
        if handler is None:
            raise ValueError(f"{type(message).__name__} was sent the wrong way")
        return handler(link, message)
