"""Plans between one local cache and the caches of several ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from llm_datadist._errors import invalid
from llm_datadist._plan.indices import blocks_array
from llm_datadist._plan.layout import Plan
from llm_datadist._plan.layouts.descriptors import expanded, plan_part
from llm_datadist._plan.layouts.match import check_match, with_common_rows
from llm_datadist._plan.layouts.parts import Part, held_by_both, parts_of
from llm_datadist._plan.layouts.placed import PlacedLayout, Tokens, check_reach
from llm_datadist._types.checks import INT32_MAX, check_int, check_range

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from llm_datadist._plan.layouts.descriptors import TensorPlan
    from llm_datadist._plan.layouts.kv_layout import KvLayout

    Blocks: TypeAlias = NDArray[np.int64]

__all__ = [
    "LinkPlan",
    "Side",
    "check_tokens",
    "plan_pull",
    "plan_push",
    "plan_rank",
    "pull_parts",
    "push_parts",
]


class LinkPlan(NamedTuple):
    """What moves over the link to one rank *(extension)*.

    Attributes:
        rank: Index of the rank in the caller's list.
        parts: Layers and heads, numbered over the whole model (for a latent: its pieces).
        plan: The descriptors: `local`, `remote` and `length`, uint64 arrays of equal length, and
            `total_bytes`.
    """

    rank: int
    parts: tuple[Part, ...]
    plan: Plan


class Side(NamedTuple):
    """A cache and its blocks, int64, in range, in the order of the tokens."""

    cache: PlacedLayout
    blocks: Blocks


def plan_pull(
    sources: Sequence[PlacedLayout],
    destination: PlacedLayout,
    src_blocks: Sequence[Sequence[int]],
    dst_blocks: Sequence[int],
    num_tokens: int,
    *,
    src_offset: int = 0,
    dst_offset: int = 0,
    layers: range | None = None,
    prefer: int = 0,
) -> list[LinkPlan]:
    """Plan to fill blocks of a local cache from the caches of several ranks *(extension)*.

    Args:
        sources: The caches of the ranks, which may be alike or not. Each layer and head that the
            destination holds must be held by at least one.
        destination: The local cache.
        src_blocks: Blocks of each source, 0-based, in the order of the tokens. The first token of
            a list's first block is token 0 of that list.
        dst_blocks: Local blocks in the order of the tokens, no duplicates.
        num_tokens: Tokens to move.
        src_offset: Tokens of the sources' lists before the first one that moves.
        dst_offset: The same for the local list.
        layers: Layers to fill, numbered over the whole model; None = all of the destination.
        prefer: Index of the rank to ask first among those that hold the same.

    Returns:
        One entry for each rank that is asked for anything, in their order; none without tokens. The
        descriptors of all write every row of the tokens once, and nothing else; in an opaque
        interior they write whole blocks.
    Raises:
        TypeError: A wrong type.
        ValueError: A negative number.
        LLMException: LLM_PARAM_INVALID: bytes would have to be converted, heads or layers that no
            rank holds, indices out of range or repeated, lists too short for the tokens. The text
            has both values.
    Source: docs/design/layouts.md. Pure arithmetic: nothing is read or written.
    """
    operation = "plan_pull"
    tokens = check_tokens(num_tokens, src_offset, dst_offset)
    if len(src_blocks) != len(sources):
        raise invalid(
            operation,
            f"src_blocks has {len(src_blocks)} lists, {len(sources)} sources are given",
            "give the blocks of each source",
        )
    dst_ids = blocks_array(operation, "dst_blocks", dst_blocks, destination.num_blocks, unique=True)
    check_reach(operation, "dst_blocks", dst_ids, destination.layout, tokens.dst_offset, tokens)
    layouts = [source.layout for source in sources]
    parts, layouts, wanted = pull_parts(operation, layouts, destination.layout, layers, prefer)
    local = Side(destination.with_layout(wanted), dst_ids)
    made: list[tuple[Part, TensorPlan]] = []
    for rank in sorted({part.rank for part in parts}):
        name = f"src_blocks[{rank}]"
        ids = blocks_array(operation, name, src_blocks[rank], sources[rank].num_blocks)
        check_reach(operation, name, ids, layouts[rank], tokens.src_offset, tokens)
        own = [part for part in parts if part.rank == rank and tokens.num_tokens]
        src = Side(sources[rank].with_layout(layouts[rank]), ids)
        made += _planned(operation, own, src, local, tokens, push=False)
    return _by_rank(made)


def plan_push(
    source: PlacedLayout,
    destinations: Sequence[PlacedLayout],
    src_blocks: Sequence[int],
    dst_blocks: Sequence[Sequence[int]],
    num_tokens: int,
    *,
    src_offset: int = 0,
    dst_offset: int = 0,
    layers: range | None = None,
) -> list[LinkPlan]:
    """Plan to send what a local cache holds to the caches of several ranks *(extension)*.

    Each destination gets the layers and heads that both sides hold. What a destination holds
    besides must come from other ranks.

    Args:
        source: The local cache.
        destinations: The caches of the ranks.
        src_blocks: Local blocks in the order of the tokens.
        dst_blocks: Blocks of each destination, no duplicates.
        num_tokens: As for `plan_pull`.
        src_offset: As for `plan_pull`.
        dst_offset: As for `plan_pull`.
        layers: Layers to send, numbered over the whole model; None = all that are held.

    Returns, raises: As `plan_pull`; LLM_PARAM_INVALID also if no destination holds anything of the
    source.
    Source: docs/design/layouts.md. Pure arithmetic.
    """
    operation = "plan_push"
    tokens = check_tokens(num_tokens, src_offset, dst_offset)
    if len(dst_blocks) != len(destinations):
        raise invalid(
            operation,
            f"dst_blocks has {len(dst_blocks)} lists, {len(destinations)} destinations are given",
            "give the blocks of each destination",
        )
    src_ids = blocks_array(operation, "src_blocks", src_blocks, source.num_blocks)
    check_reach(operation, "src_blocks", src_ids, source.layout, tokens.src_offset, tokens)
    layouts = [destination.layout for destination in destinations]
    parts, layouts, sent = push_parts(operation, source.layout, layouts, layers)
    local = Side(source.with_layout(sent), src_ids)
    made: list[tuple[Part, TensorPlan]] = []
    for part in parts:
        name, remote = f"dst_blocks[{part.rank}]", destinations[part.rank]
        ids = blocks_array(operation, name, dst_blocks[part.rank], remote.num_blocks, unique=True)
        layout = layouts[part.rank]
        check_reach(operation, name, ids, layout, tokens.dst_offset, tokens)
        own = [part] if tokens.num_tokens else []
        dst = Side(remote.with_layout(layout), ids)
        made += _planned(operation, own, local, dst, tokens, push=True)
    return _by_rank(made)


def plan_rank(
    operation: str,
    parts: Sequence[Part],
    src: Side,
    dst: Side,
    tokens: Tokens,
    *,
    push: bool = False,
) -> LinkPlan:
    """Plan what moves over the link to one rank *(internal)*.

    Args:
        operation: The call, for the text.
        parts: Of `pull_parts` or `push_parts`; at least one, all of one rank.
        src: The source: its layout as those return it, its blocks checked.
        dst: The destination, the same.
        tokens: At least one.
        push: The source is the local side.

    Raises:
        LLMException: As `plan_part`.
    """
    (link,) = _by_rank(_planned(operation, parts, src, dst, tokens, push=push))
    return link


def check_tokens(num_tokens: object, src_offset: object, dst_offset: object) -> Tokens:
    """Return the token arguments of a call.

    Raises:
        TypeError, ValueError: Not integers, or outside 31 bits.
    """
    return Tokens(
        check_int("num_tokens", num_tokens, 0, INT32_MAX),
        check_int("src_offset", src_offset, 0, INT32_MAX),
        check_int("dst_offset", dst_offset, 0, INT32_MAX),
    )


def pull_parts(
    operation: str,
    sources: Sequence[KvLayout],
    wanted: KvLayout,
    layers: range | None,
    prefer: int,
) -> tuple[list[Part], list[KvLayout], KvLayout]:
    """Return what each source is asked for, and both sides' layouts with rows of equal size.

    Raises:
        TypeError, LLMException: As `plan_pull`.
    """
    common, common_wanted = _matched(operation, sources, wanted, layers, push=False)
    parts = parts_of(operation, common, common_wanted, layers, prefer=check_int("prefer", prefer))
    return parts, common, common_wanted


def push_parts(
    operation: str, source: KvLayout, destinations: Sequence[KvLayout], layers: range | None
) -> tuple[list[Part], list[KvLayout], KvLayout]:
    """Return what each destination gets, and both sides' layouts with rows of equal size.

    Raises:
        TypeError, LLMException: As `plan_push`.
    """
    common, sent = _matched(operation, destinations, source, layers, push=True)
    held = [
        held_by_both(operation, rank, sent, destination, layers)
        for rank, destination in enumerate(common)
    ]
    parts = [part for part in held if part is not None]
    if not parts:
        raise invalid(
            operation,
            f"none of the {len(destinations)} destinations holds any of layers {source.layers}, "
            f"heads {source.heads}",
            "name the ranks that hold what this one has",
        )
    return parts, common, sent


def _matched(
    operation: str, ranks: Sequence[KvLayout], own: KvLayout, layers: range | None, *, push: bool
) -> tuple[list[KvLayout], KvLayout]:
    """Check the layouts of both sides, and return them with rows of equal size."""
    if layers is not None:
        check_range("layers", layers)
    for rank, layout in enumerate(ranks):
        src, dst = (own, layout) if push else (layout, own)
        check_match(operation, src, dst, f"rank {rank}")
    return with_common_rows(operation, ranks, own)


def _planned(
    operation: str, parts: Sequence[Part], src: Side, dst: Side, tokens: Tokens, *, push: bool
) -> list[tuple[Part, TensorPlan]]:
    return [
        (
            part,
            plan_part(
                operation, part, src.cache, src.blocks, dst.cache, dst.blocks, tokens, push=push
            ),
        )
        for part in parts
    ]


def _by_rank(made: Sequence[tuple[Part, TensorPlan]]) -> list[LinkPlan]:
    """Return the plans of parts, in order of the ranks, as one per rank."""
    plans = expanded([plan for _, plan in made])
    links: list[LinkPlan] = []
    for (part, _), plan in zip(made, plans, strict=True):
        last = links[-1] if links else None
        if last is not None and last.rank == part.rank:
            links[-1] = LinkPlan(part.rank, (*last.parts, part), Plan.joined((last.plan, plan)))
        else:
            links.append(LinkPlan(part.rank, (part,), plan))
    return links
