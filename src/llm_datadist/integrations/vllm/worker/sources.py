"""Which of a producer's workers a consumer's worker loads from, and what each of them must be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from llm_datadist.integrations.vllm.kv_transfer_params import shape_of
from llm_datadist.integrations.vllm.rank_layouts import Indivisible, peers_of
from llm_datadist.integrations.vllm.stages import EngineShape, overlapping, span_text
from llm_datadist.integrations.vllm.worker.compatibility import Expected, facts_of_rank
from llm_datadist.integrations.vllm.worker.producer_links import Incompatible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_datadist.integrations.vllm.kv_transfer_params import RankAddress
    from llm_datadist.integrations.vllm.worker.instance import WorkerInstance
    from llm_datadist.layouts import KvLayout

_MOST_KEPT = 64


@dataclass(frozen=True, slots=True)
class Source:
    """One of a producer's workers.

    Attributes:
        index: Its index among those of its engine, as the request says.
        readers: Tensor-parallel ranks of this worker's engine that load from it.
        stage: Layers of its pipeline stage; None if they are not known.
        expected: Facts that it must have.
        layouts: Layout of each part of its KV memory; empty if they are those of this worker.
    """

    index: int
    readers: range
    stage: range | None
    expected: Expected
    layouts: tuple[KvLayout, ...] = field(default=())


Sources: TypeAlias = "Sequence[tuple[RankAddress, Source]]"
"""Sources of one producer: each with the address of its worker."""


class SourceFinder:
    """Finds the sources of producers, which it remembers by their shapes. Thread-safe.

    Args:
        worker: The worker's instance.
    """

    def __init__(self, worker: WorkerInstance) -> None:
        self._worker = worker
        self._found: dict[tuple[EngineShape, tuple[int, ...]], tuple[Source, ...]] = {}

    def find(self, ranks: Sequence[RankAddress], block_sizes: Sequence[int]) -> Sources:
        """Return the sources of a producer.

        Args:
            ranks: The producer's workers.
            block_sizes: Tokens of its blocks, by KV cache group.

        Raises:
            Incompatible: This worker cannot load from such a producer.
        """
        try:
            shape = shape_of(ranks)
            sizes = shape, tuple(block_sizes)
            found = self._found.get(sizes)
            if found is None:
                found = self._find(*sizes)
                if len(self._found) >= _MOST_KEPT:  # routers may have changed what they pass on
                    self._found.clear()
                self._found[sizes] = found
        except (Indivisible, ValueError) as error:
            raise Incompatible(str(error)) from None
        return [(ranks[source.index], source) for source in found]

    def _find(self, shape: EngineShape, block_sizes: tuple[int, ...]) -> tuple[Source, ...]:
        worker, layouts = self._worker, self._worker.rank_layouts
        if self._is_equal(shape, block_sizes):
            own = range(layouts.rank, layouts.rank + 1)
            equal = Expected(worker.facts)
            return (Source(worker.layout.rank, own, layouts.stage.layers, equal),)
        sources = []
        for stage in self._stages(shape):
            for rank in peers_of(layouts.tp_size, layouts.rank, shape.tp_size):
                index = stage * shape.tp_size + rank
                parts = layouts.of_rank(shape.tp_size, rank, block_sizes, shape.stages[stage])
                facts = facts_of_rank(worker.facts, worker.layout, parts, shape, index, block_sizes)
                readers = peers_of(shape.tp_size, rank, layouts.tp_size)
                expected = Expected(facts, "expected")
                sources.append(Source(index, readers, shape.stages[stage], expected, parts))
        return tuple(sources)

    def _is_equal(self, shape: EngineShape, block_sizes: tuple[int, ...]) -> bool:
        """Return whether the producer's worker of the same index holds what this worker holds."""
        own = self._worker.rank_layouts
        sizes = own.tp_size, own.stage.count, own.block_sizes
        if (shape.tp_size, len(shape.stages), block_sizes) != sizes:
            return False
        return shape.stages[own.stage.rank] in {None, own.stage.layers}

    def _stages(self, shape: EngineShape) -> list[int]:
        """Return the producer's stages that hold layers of this worker.

        Raises:
            Indivisible: They do not hold all of them, or it is not known.
        """
        own, stages = self._worker.rank_layouts.stage, shape.stages
        if len(stages) == own.count == 1 and None in {own.layers, stages[0]}:
            return [0]
        known = [layers for layers in stages if layers is not None]
        if own.layers is None or len(known) < len(stages):
            raise Indivisible(
                f"the producer has pipeline parallel size {len(stages)}, the consumer {own.count}, "
                "and which worker holds which layers is not known, because the layers of a KV "
                "cache group do not follow each other; run both with the same "
                "--pipeline-parallel-size"
            )
        if known[0].start > own.layers.start or known[-1].stop < own.layers.stop:
            raise Indivisible(
                f"the producer has the layers {', '.join(map(span_text, known))}, this worker of "
                f"the consumer {span_text(own.layers)}; every worker of the producer must be in "
                "the request"
            )
        return overlapping(own.layers, stages, own.rank)
