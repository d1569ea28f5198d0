"""`kv_transfer_params`: what travels with a request, through client or router.

Pull mode: a request to the producer says `{"do_remote_decode": true}`. The producer answers with
an `Offer` as dictionary, which the client or router passes on to the consumer unchanged.

Push mode: both get the request at the same time, with the same `transfer`, a random name. The
producer's says `{"do_remote_decode": true, "transfer": "..."}`, the consumer's, a `RemotePrefill`,
`{"do_remote_prefill": true, "transfer": "...", "ranks": [...]}`, with the `ranks` of any earlier
answer of that producer, pull or push.
"""

from __future__ import annotations

import hashlib
from array import array
from typing import Any

import msgspec

__all__ = [
    "RemotePrefill",
    "Offer",
    "RankAddress",
    "remote_prefill_of",
    "offer_of",
    "prompt_digest",
    "mailbox_key_of",
    "wants_remote_decode",
]

MAX_KEY = 2**63 - 1
_MAX_RANKS = 4096
_MIN_NAME, _MAX_NAME = 16, 256


class RankAddress(msgspec.Struct, frozen=True):
    """Where the producer's worker of one tensor-parallel rank listens."""

    ip: str
    port: int
    cluster_id: int


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A finished prompt that a producer keeps for one consumer.

    Attributes:
        key: First BlocksCacheKey.model_id under which the workers have registered the request's
            blocks; withdrawn before any of them is used for something else.
        ranks: The producer's workers by rank.
        blocks: Physical blocks by KV cache group, in the order of the tokens.
        num_tokens: How many of the prompt's tokens they hold.
        prompt: Digest of what the tokens were computed from.
        remote_request_id: For logs.
    """

    key: int
    ranks: list[RankAddress]
    blocks: list[list[int]]
    num_tokens: int
    prompt: str
    remote_request_id: str
    remote_engine_id: str
    do_remote_prefill: bool = True
    do_remote_decode: bool = False

    def to_params(self) -> dict[str, Any]:
        """As kv_transfer_params."""
        params: dict[str, Any] = msgspec.to_builtins(self)
        return params


class RemotePrefill(msgspec.Struct, frozen=True, kw_only=True):
    """Which prefill a consumer waits for.

    Attributes:
        transfer: The name that the producer's request has too.
        ranks: The producer's workers by rank.
    """

    transfer: str
    ranks: list[RankAddress]

    @property
    def key(self) -> int:
        """BlocksCacheKey.model_id of the producer's page for the ticket."""
        return _page_key(self.transfer)

    def to_params(self) -> dict[str, Any]:
        """As the producer's kv_transfer_params."""
        params: dict[str, Any] = msgspec.to_builtins(self)
        return {**params, "do_remote_prefill": False, "do_remote_decode": False}


def mailbox_key_of(params: dict[str, Any] | None) -> int | None:
    """Key of the page for the ticket of a request that is to be pushed; None when it is not.

    Raises:
        ValueError: The transfer's name is not usable.
    """
    if params is None or not wants_remote_decode(params) or "transfer" not in params:
        return None
    return _page_key(_checked(params["transfer"]))


def remote_prefill_of(params: dict[str, Any] | None) -> RemotePrefill | None:
    """The meeting that the request carries, or None when it carries none.

    Raises:
        ValueError: There is one, malformed; the text says what is wrong with it.
    """
    if not params or params.get("do_remote_prefill") is not True or "transfer" not in params:
        return None
    try:
        meeting = msgspec.convert(params, RemotePrefill)
    except msgspec.ValidationError as error:
        raise ValueError(
            f'kv_transfer_params with a "transfer" is malformed: {error}; "ranks" is what any '
            "answer of the producer says"
        ) from None
    _checked(meeting.transfer)
    if not 0 < len(meeting.ranks) <= _MAX_RANKS:
        raise ValueError(f'kv_transfer_params has {len(meeting.ranks)} "ranks"')
    return meeting


def _checked(transfer: object) -> str:
    if not isinstance(transfer, str) or not _MIN_NAME <= len(transfer) <= _MAX_NAME:
        raise ValueError(
            f'"transfer" in kv_transfer_params is {transfer!r}; write a random text of {_MIN_NAME} '
            f"to {_MAX_NAME} characters, such as a UUID, the same for producer and consumer"
        )
    return transfer


def _page_key(transfer: str) -> int:
    digest = hashlib.sha256(b"ticket of " + transfer.encode()).digest()
    return 1 + int.from_bytes(digest[:8], "little") % MAX_KEY


def wants_remote_decode(params: dict[str, Any] | None) -> bool:
    """Whether the request is to be prefilled here and decoded elsewhere."""
    return bool(params) and params is not None and params.get("do_remote_decode") is True


def offer_of(params: dict[str, Any] | None) -> Offer | None:
    """The offer that the request carries, or None when it carries none.

    Raises:
        ValueError: There is one, malformed; the text says what is wrong with it.
    """
    if not params or params.get("do_remote_prefill") is not True:
        return None
    try:
        offer = msgspec.convert(params, Offer)
    except msgspec.ValidationError as error:
        raise ValueError(
            f"kv_transfer_params is not an offer of this connector: {error}; pass on what the "
            "producer returned, unchanged"
        ) from None
    if not (
        0 < offer.key <= MAX_KEY
        and 0 < len(offer.ranks) <= _MAX_RANKS
        and offer.blocks
        and all(block >= 0 for blocks in offer.blocks for block in blocks)
        and offer.num_tokens > 0
    ):
        raise ValueError("kv_transfer_params is an offer with values out of range")
    return offer


def prompt_digest(request: Any) -> str | None:
    """Digest of everything in a request that its prompt's KV depends on.

    Producer and consumer compute it on their own; an offer whose digest differs from that of the
    request it came with belongs to another prompt and is not used.

    Returns:
        None when the prompt is not made of token ids alone (prompt embeddings).
    """
    if request.prompt_token_ids is None or request.prompt_embeds is not None:
        return None
    digest = hashlib.sha256(array("q", request.prompt_token_ids).tobytes())
    lora = request.lora_request
    parts = ["" if lora is None else f"{lora.lora_name}"]
    for feature in request.mm_features or ():
        position = feature.mm_position
        parts.append(f"{feature.identifier}@{position.offset}+{position.length}")
    digest.update(msgspec.json.encode(parts))
    return digest.hexdigest()
