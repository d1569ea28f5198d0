"""Which of a producer's workers a consumer's worker pulls from, and what each of them must be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llm_datadist.integrations.vllm.rank_layouts import Indivisible
from llm_datadist.integrations.vllm.worker.compatibility import Expected, facts_of_rank
from llm_datadist.integrations.vllm.worker.producer_links import Incompatible

if TYPE_CHECKING:
    from llm_datadist.integrations.vllm.kv_transfer_params import Offer, RankAddress
    from llm_datadist.integrations.vllm.worker.instance import WorkerInstance
    from llm_datadist.layouts import KvLayout

_MOST_KEPT = 64


@dataclass(frozen=True, slots=True)
class Source:
    """One of a producer's workers.

    Attributes:
        index: Its tensor-parallel rank, as the offer says.
        expected: Facts that it must have.
        layouts: Layout of each part of its KV memory; empty if they are those of this worker.
    """

    index: int
    expected: Expected
    layouts: tuple[KvLayout, ...] = field(default=())


class PullSources:
    """Finds the sources of offers. Thread-safe.

    Of unequal tensor-parallel sizes the larger is a multiple of the smaller. The ranks of the
    larger engine are divided evenly, in order, among those of the smaller. So are the KV heads in
    both engines, and what a worker holds is held by the workers that fall to it. Each worker of a
    producer falls to at least one of a consumer, which also gives its blocks back.

    Args:
        worker: The worker's instance.
    """

    def __init__(self, worker: WorkerInstance) -> None:
        self._worker = worker
        self._found: dict[tuple[int, tuple[int, ...]], tuple[Source, ...]] = {}

    def of(self, offer: Offer) -> list[tuple[RankAddress, Source]]:
        """Return the sources of an offer, with their addresses.

        Raises:
            Incompatible: This worker cannot load from such a producer.
        """
        sizes = len(offer.ranks), tuple(offer.block_sizes)
        found = self._found.get(sizes)
        if found is None:
            try:
                found = self._find(*sizes)
            except Indivisible as error:
                raise Incompatible(str(error)) from None
            if len(self._found) >= _MOST_KEPT:  # routers may have changed the offers
                self._found.clear()
            self._found[sizes] = found
        return [(offer.ranks[source.index], source) for source in found]

    def _find(self, tp_size: int, block_sizes: tuple[int, ...]) -> tuple[Source, ...]:
        worker, layouts = self._worker, self._worker.rank_layouts
        if (tp_size, block_sizes) == (layouts.tp_size, layouts.block_sizes):
            return (Source(layouts.rank, Expected(worker.facts)),)
        sources = []
        for index in _ranks(tp_size, layouts.tp_size, layouts.rank):
            parts = layouts.of_rank(tp_size, index, block_sizes)
            facts = facts_of_rank(worker.facts, worker.layout, parts, tp_size, index, block_sizes)
            sources.append(Source(index, Expected(facts, "expected"), parts))
        return tuple(sources)


def _ranks(tp_size: int, own_tp_size: int, own_rank: int) -> range:
    """Return the ranks of another engine that fall to a rank of this one."""
    if tp_size >= own_tp_size:
        each = tp_size // own_tp_size
        return range(own_rank * each, (own_rank + 1) * each)
    rank = own_rank // (own_tp_size // tp_size)
    return range(rank, rank + 1)
