"""Which of a producer's workers a consumer's worker loads from, and what each of them must be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from llm_datadist.integrations.vllm.rank_layouts import Indivisible, peers_of
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
        index: Its tensor-parallel rank, as the request says.
        expected: Facts that it must have.
        layouts: Layout of each part of its KV memory; empty if they are those of this worker.
    """

    index: int
    expected: Expected
    layouts: tuple[KvLayout, ...] = field(default=())


Sources: TypeAlias = "Sequence[tuple[RankAddress, Source]]"
"""Sources of one producer: each with the address of its worker."""


class SourceFinder:
    """Finds the sources of producers, which it remembers by their sizes. Thread-safe.

    Args:
        worker: The worker's instance.
    """

    def __init__(self, worker: WorkerInstance) -> None:
        self._worker = worker
        self._found: dict[tuple[int, tuple[int, ...]], tuple[Source, ...]] = {}

    def find(self, ranks: Sequence[RankAddress], block_sizes: Sequence[int]) -> Sources:
        """Return the sources of a producer.

        Args:
            ranks: The producer's workers.
            block_sizes: Tokens of its blocks, by KV cache group.

        Raises:
            Incompatible: This worker cannot load from such a producer.
        """
        sizes = len(ranks), tuple(block_sizes)
        found = self._found.get(sizes)
        if found is None:
            try:
                found = self._find(*sizes)
            except Indivisible as error:
                raise Incompatible(str(error)) from None
            if len(self._found) >= _MOST_KEPT:  # routers may have changed what they pass on
                self._found.clear()
            self._found[sizes] = found
        return [(ranks[source.index], source) for source in found]

    def _find(self, tp_size: int, block_sizes: tuple[int, ...]) -> tuple[Source, ...]:
        worker, layouts = self._worker, self._worker.rank_layouts
        if (tp_size, block_sizes) == (layouts.tp_size, layouts.block_sizes):
            return (Source(layouts.rank, Expected(worker.facts)),)
        sources = []
        for index in peers_of(layouts.tp_size, layouts.rank, tp_size):
            parts = layouts.of_rank(tp_size, index, block_sizes)
            facts = facts_of_rank(worker.facts, worker.layout, parts, tp_size, index, block_sizes)
            sources.append(Source(index, Expected(facts, "expected"), parts))
        return tuple(sources)
