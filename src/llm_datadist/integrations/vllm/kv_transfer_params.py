"""`kv_transfer_params`: the fields of a request that pass through client or router.

Pull mode: a request to the producer has `{"do_remote_decode": true}`. The producer answers with an
`Offer` as a dictionary, which the client or router passes on to the consumer unchanged.

Push mode: both get the request at the same time, with the same `transfer`, a random name. The
producer's has `{"do_remote_decode": true, "transfer": "..."}`, the consumer's, a `RemotePrefill`,
`{"do_remote_prefill": true, "transfer": "...", "ranks": [...], "block_sizes": [...]}`, with the
`ranks` and `block_sizes` of any earlier answer of that producer in either mode.
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from typing import TYPE_CHECKING, Any

import msgspec

from llm_datadist.integrations.vllm.kv_layout import MAX_KEY
from llm_datadist.integrations.vllm.rank_layouts import MAX_RANKS
from llm_datadist.integrations.vllm.stages import MAX_LAYERS, EngineShape, span_text

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_BLOCK_SIZE = 1 << 20
_MIN_NAME, _MAX_NAME = 16, 256
_MOST_LISTED = 32
_PREFILLED = {"FINISHED_LENGTH_CAPPED", "FINISHED_STOPPED", "FINISHED_REPETITION"}


class RankAddress(msgspec.Struct, frozen=True, omit_defaults=True):
    """One of a producer's workers.

    Attributes:
        ip: Address on which it listens.
        port: The port.
        cluster_id: Its cluster id.
        stage: Its pipeline-parallel rank.
        layers: Layers of the model that it holds, as first and end; None if it does not know.
    """

    ip: str
    port: int
    cluster_id: int
    stage: int = 0
    layers: tuple[int, int] | None = None


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A finished prompt that a producer keeps for one consumer.

    Attributes:
        key: First BlocksCacheKey.model_id under which the workers publish the request's blocks;
            withdrawn before any of them is reused.
        ranks: The producer's workers, stage by stage, by tensor-parallel rank.
        blocks: The producer's blocks, by KV cache group, in the order of the tokens.
        block_sizes: Tokens of a block, by KV cache group.
        num_tokens: Number of the prompt's tokens that they hold.
        prompt: `prompt_digest` of the request.
        remote_request_id: For logs.
    """

    key: int
    ranks: list[RankAddress]
    blocks: list[list[int]]
    block_sizes: list[int]
    num_tokens: int
    prompt: str
    remote_request_id: str
    remote_engine_id: str
    do_remote_prefill: bool = True
    do_remote_decode: bool = False

    def to_params(self) -> dict[str, Any]:
        """Convert to kv_transfer_params of the producer's answer."""
        params: dict[str, Any] = msgspec.to_builtins(self)
        return params


class RemotePrefill(msgspec.Struct, frozen=True, kw_only=True):
    """A prefill for which a consumer waits in push mode.

    Attributes:
        transfer: Name of the transfer, which the producer's request has too.
        ranks: The producer's workers, stage by stage, by tensor-parallel rank.
        block_sizes: Tokens of its blocks, by KV cache group; None = those of this engine.
    """

    transfer: str
    ranks: list[RankAddress]
    block_sizes: list[int] | None = None

    @property
    def mailbox_key(self) -> int:
        """BlocksCacheKey.model_id of the producer's mailbox for the ticket."""
        return _mailbox_key(self.transfer)

    def to_params(self) -> dict[str, Any]:
        """Convert to kv_transfer_params of the producer's answer."""
        params: dict[str, Any] = msgspec.to_builtins(self)
        return {**params, "do_remote_prefill": False, "do_remote_decode": False}


def mailbox_key_of_slot(key: int, slot: int) -> int:
    """Return the key of the mailbox for the ticket of one of several workers of a consumer.

    Args:
        key: Key of the mailbox for the first one.
        slot: Place of the worker among those that load from the same worker, from 0.
    """
    return 1 + (key - 1 + slot) % MAX_KEY


def mailbox_key_of(params: dict[str, Any] | None) -> int | None:
    """Return the key of the mailbox for a request's ticket; None if it is not to be pushed.

    Raises:
        ValueError: The transfer's name cannot be used.
    """
    if params is None or not wants_remote_decode(params) or "transfer" not in params:
        return None
    return _mailbox_key(_checked(params["transfer"]))


def remote_prefill_of(params: dict[str, Any] | None) -> RemotePrefill | None:
    """Return the remote prefill that a request names, or None.

    Raises:
        ValueError: It is malformed; the text says how.
    """
    if not params or params.get("do_remote_prefill") is not True or "transfer" not in params:
        return None
    try:
        prefill = msgspec.convert(params, RemotePrefill)
    except msgspec.ValidationError as error:
        raise ValueError(
            f'kv_transfer_params with a "transfer" is malformed: {error}; copy "ranks" and '
            '"block_sizes" from any answer of the producer'
        ) from None
    _checked(prefill.transfer)
    if not 0 < len(prefill.ranks) <= MAX_RANKS:
        raise ValueError(f'kv_transfer_params has {len(prefill.ranks)} "ranks"')
    if not _are_sizes(prefill.block_sizes or ()):
        raise ValueError('kv_transfer_params has "block_sizes" out of range')
    return prefill


def _are_sizes(block_sizes: Sequence[int]) -> bool:
    return all(0 < block_size <= MAX_BLOCK_SIZE for block_size in block_sizes)


def _checked(transfer: object) -> str:
    if not isinstance(transfer, str) or not _MIN_NAME <= len(transfer) <= _MAX_NAME:
        raise ValueError(
            f'"transfer" in kv_transfer_params is {transfer!r}; write a random text of {_MIN_NAME} '
            f"to {_MAX_NAME} characters, such as a UUID, the same for producer and consumer"
        )
    return transfer


def _mailbox_key(transfer: str) -> int:
    digest = hashlib.sha256(b"ticket of " + transfer.encode()).digest()
    return 1 + int.from_bytes(digest[:8], "little") % MAX_KEY


def wants_remote_decode(params: dict[str, Any] | None) -> bool:
    """Return whether this engine prefills the request and another one decodes it."""
    return bool(params) and params is not None and params.get("do_remote_decode") is True


def offer_of(params: dict[str, Any] | None) -> Offer | None:
    """Return the offer that a request carries, or None.

    Raises:
        ValueError: It is malformed; the text says how.
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
        and 0 < len(offer.ranks) <= MAX_RANKS
        and offer.blocks
        and all(block >= 0 for blocks in offer.blocks for block in blocks)
        and len(offer.block_sizes) == len(offer.blocks)
        and _are_sizes(offer.block_sizes)
        and offer.num_tokens > 0
    ):
        raise ValueError("kv_transfer_params is an offer with values out of range")
    return offer


def prompt_digest(request: Any) -> str | None:
    """Digest everything in a request that its prompt's KV depends on.

    Producer and consumer each compute it; if the two differ, the blocks belong to another prompt
    and are not used.

    Returns:
        None if the prompt does not consist of token ids alone (prompt embeddings).
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


def is_prefilled(request: Any) -> bool:
    """Return whether a request has ended in a way that leaves its prompt's blocks usable."""
    return request.status.name in _PREFILLED


def shape_of(ranks: Sequence[RankAddress]) -> EngineShape:
    """Return how a producer divides the model among its workers.

    Raises:
        ValueError: These are not all workers of an engine, in their order; the text says what
            contradicts what.
    """
    tp_size = sum(rank.stage == 0 for rank in ranks)
    stages = [rank.stage for rank in ranks]
    if (
        not tp_size
        or stages != [index // tp_size for index in range(len(ranks))]
        or (len(ranks) % tp_size)
    ):
        listed = ", ".join(map(str, stages[:_MOST_LISTED]))
        raise ValueError(
            f"the producer's {len(ranks)} workers have the pipeline-parallel ranks {listed}, not 0 "
            'for the first ones, then 1 for as many, and so on; pass on its "ranks" unchanged'
        )
    return EngineShape(tp_size, _layers_of_stages(ranks, tp_size))


def _layers_of_stages(ranks: Sequence[RankAddress], tp_size: int) -> tuple[range | None, ...]:
    found: list[range | None] = []
    for index, rank in enumerate(ranks):
        first, end = rank.layers or (0, 1)
        if not 0 <= first < end <= MAX_LAYERS:
            raise ValueError(f"worker {index} of the producer has the layers {first} to {end - 1}")
        layers = range(first, end) if rank.layers else None
        if index % tp_size == 0:
            found.append(layers)
        elif layers != found[-1]:
            raise ValueError(
                f"workers of the producer's pipeline-parallel rank {rank.stage} have the layers "
                f"{span_text(found[-1])} and {span_text(layers)}, which must be the same"
            )
    for stage, (one, following) in enumerate(itertools.pairwise(found)):
        if one is not None and following is not None and one.stop != following.start:
            raise ValueError(
                f"the producer's pipeline-parallel rank {stage} has the layers {span_text(one)}, "
                f"rank {stage + 1} {span_text(following)}: they must follow each other"
            )
    return tuple(found)


def producer_problem(ranks: list[RankAddress], tp_size: int, *, is_consumer: bool) -> str:
    """Return why this engine cannot load from a producer with these ranks, or ""."""
    if not is_consumer:
        return "this engine is a producer only; give it kv_role kv_consumer or kv_both"
    try:
        producers = shape_of(ranks).tp_size
    except ValueError as error:
        return str(error)
    if max(producers, tp_size) % min(producers, tp_size):
        return (
            f"the producer has tensor parallel size {producers}, this engine {tp_size}; one "
            "must be a multiple of the other"
        )
    return ""
