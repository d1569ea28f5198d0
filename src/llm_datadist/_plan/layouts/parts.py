"""Which rank is asked for which layers and heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from llm_datadist._errors import invalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from llm_datadist._plan.layouts.kv_layout import KvLayout

__all__ = ["Part", "held_by_both", "parts_of"]


class Part(NamedTuple):
    """Layers and heads that move between the local cache and one rank.

    Attributes:
        rank: Its index.
        layers: Numbered over the whole model.
        heads: Numbered over the whole model.
    """

    rank: int
    layers: range
    heads: range


def parts_of(
    operation: str,
    sources: Sequence[KvLayout],
    wanted: KvLayout,
    layers: range | None = None,
    *,
    prefer: int = 0,
) -> list[Part]:
    """Divide what a destination holds among the ranks that have it, each layer and head once.

    Of several ranks with the same heads (replicated heads, latents) the one with the least to send
    is asked; of equals the first from `prefer` on, so that destinations can avoid asking the same.

    Args:
        operation: The call, for the text.
        sources: What each rank holds.
        wanted: What the destination holds.
        layers: Layers of the destination to be filled, numbered over the whole model; None = all.
        prefer: Index of the preferred rank, modulo their number.

    Returns:
        The parts in order of the ranks; one per rank, unless it has ranges with gaps between.
    Raises:
        LLMException: LLM_PARAM_INVALID: layers that the destination does not hold, or layers and
            heads that no rank has; the text names them.
    """
    layers = _checked_layers(operation, wanted, layers)
    load = [0] * len(sources)
    taken: dict[int, list[Part]] = {}
    # What few ranks hold first, so that the others can make up for it.
    for layer_span, head_span, having in sorted(
        _choices(operation, sources, wanted.heads, layers), key=lambda choice: len(choice[2])
    ):
        chosen = min(having, key=lambda rank: (load[rank], (rank - prefer) % len(sources)))
        load[chosen] += len(layer_span) * len(head_span)
        taken.setdefault(chosen, []).append(Part(chosen, layer_span, head_span))
    return [part for rank in sorted(taken) for part in _joined(taken[rank])]


def held_by_both(
    operation: str, rank: int, src: KvLayout, dst: KvLayout, layers: range | None = None
) -> Part | None:
    """Return what a source can send to one destination of several; None for nothing.

    Args:
        operation: The call, for the text.
        rank: Index of the destination, which the part carries.
        src: What the source holds.
        dst: What the destination holds.
        layers: Layers to be sent; None = all that both hold.

    Raises:
        LLMException: LLM_PARAM_INVALID: layers that the source does not hold.
    """
    common = _common(_checked_layers(operation, src, layers), dst.layers)
    heads = _common(src.heads, dst.heads)
    return Part(rank, common, heads) if common and heads else None


def _checked_layers(operation: str, layout: KvLayout, layers: range | None) -> range:
    if layers is None:
        return layout.layers
    if (
        layers.step != 1
        or not layers
        or layers[0] not in layout.layers
        or (layers[-1] not in layout.layers)
    ):
        raise invalid(
            operation,
            f"layers is {layers}, the local cache holds {layout.layers}",
            "give a range of step 1, not empty, within them; layers are numbered over the model",
        )
    return layers


def _choices(
    operation: str, sources: Sequence[KvLayout], heads: range, layers: range
) -> Iterator[tuple[range, range, list[int]]]:
    """Yield layers and heads, divided at the borders of the ranks, and the ranks that hold them."""
    for layer_span in _cut(layers, [source.layers for source in sources]):
        able = [rank for rank, source in enumerate(sources) if layer_span[0] in source.layers]
        for head_span in _cut(heads, [sources[rank].heads for rank in able]):
            having = [rank for rank in able if head_span[0] in sources[rank].heads]
            if not having:
                raise invalid(
                    operation,
                    f"none of the {len(sources)} source ranks holds heads {head_span} of layers "
                    f"{layer_span}",
                    "name every rank that holds a part of it",
                )
            yield layer_span, head_span, having


def _common(first: range, second: range) -> range:
    return range(max(first.start, second.start), min(first.stop, second.stop))


def _cut(span: range, others: Iterable[range]) -> list[range]:
    """Divide a range at every border of the others."""
    borders = {border for other in others for border in (other.start, other.stop)}
    inner = sorted(border for border in borders if span.start < border < span.stop)
    ends = [*inner, span.stop]
    return [range(low, high) for low, high in zip([span.start, *inner], ends, strict=True)]


def _joined(parts: list[Part]) -> list[Part]:
    """Join parts of one rank that make a larger one."""
    rows: list[Part] = []
    for part in sorted(parts, key=lambda part: (part.layers.start, part.heads.start)):
        last = rows[-1] if rows else None
        if last and last.layers == part.layers and last.heads.stop == part.heads.start:
            rows[-1] = last._replace(heads=range(last.heads.start, part.heads.stop))
        else:
            rows.append(part)
    joined: list[Part] = []
    for part in rows:
        for place, other in enumerate(joined):
            if other.heads == part.heads and other.layers.stop == part.layers.start:
                joined[place] = other._replace(layers=range(other.layers.start, part.layers.stop))
                break
        else:
            joined.append(part)
    return joined
