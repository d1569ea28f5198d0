"""Pipeline stages: which layers of the model the workers of an engine hold.

With pipeline parallelism each worker holds the KV of some layers. A stage is one pipeline-parallel
rank: one worker for each tensor-parallel rank, all with the same layers. The workers of an engine
are counted stage by stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_LAYERS = 1 << 16


@dataclass(frozen=True, slots=True)
class Stage:
    """Stage of one worker.

    Attributes:
        rank: Its pipeline-parallel rank.
        count: Stages of the engine.
        layers: Layers that the worker holds, numbered over the model; None if their names do not
            number them one after another.
    """

    rank: int = 0
    count: int = 1
    layers: range | None = None

    @property
    def span(self) -> tuple[int, int] | None:
        """First of the layers, and the one after the last; None if they are not known."""
        return None if self.layers is None else (self.layers.start, self.layers.stop)


ONE_STAGE = Stage()
"""Stage of a worker whose engine has no other, and whose layers are not known."""


@dataclass(frozen=True, slots=True)
class EngineShape:
    """How an engine divides a model among its workers.

    Attributes:
        tp_size: Tensor-parallel ranks.
        stages: Layers of each stage; None where they are not known.
    """

    tp_size: int
    stages: tuple[range | None, ...]


def overlapping(layers: range | None, stages: Sequence[range | None], same: int) -> list[int]:
    """Return the stages of another engine that hold some of these layers.

    Args:
        layers: Layers of a worker.
        stages: Layers of each stage of the other engine.
        same: The worker's stage, the only one if not all layers are known, because the stages of
            both engines are equal then.
    """
    if layers is None or None in stages:
        return [same]
    return [
        index
        for index, each in enumerate(stages)
        if each is not None and each.start < layers.stop and layers.start < each.stop
    ]


def span_text(layers: range | None) -> str:
    """Return layers as a text, such as "0 to 15"."""
    return "unknown" if layers is None else f"{layers.start} to {layers.stop - 1}"


def name_pattern(layer: str) -> str:
    """Return a layer's name with "#" in place of its numbers."""
    return ".".join("#" if part.isdecimal() else part for part in layer.split("."))


def numbered_layers(parts: Iterable[Sequence[str]]) -> range | None:
    """Return the layers that each part holds, if they follow each other and are the same for all.

    Args:
        parts: Names of the layers of each part, one for each tensor, in the order of the tensors.
    """
    found: set[range | None] = set()
    for names in parts:
        numbers = [_number(name) for name in names]
        first = numbers[0] if numbers else None
        is_span = first is not None and numbers == list(range(first, first + len(numbers)))
        found.add(range(first, first + len(numbers)) if first is not None and is_span else None)
    return found.pop() if len(found) == 1 else None


def _number(layer: str) -> int | None:
    """Return the only number in a layer's name, such as 3 in `model.layers.3.attn`."""
    numbers = [part for part in layer.split(".") if part.isdecimal()]
    if len(numbers) != 1 or len(numbers[0]) > len(str(MAX_LAYERS)):
        return None
    return int(numbers[0])
