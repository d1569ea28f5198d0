"""The pool against a model that knows every page."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from llm_datadist._registry.pool import OutOfMemory, Pool

BASE = 1 << 40
NUM_PAGES = 24
PAGE_SHIFT = 10
PAGE = 1 << PAGE_SHIFT


class PoolMachine(RuleBasedStateMachine):
    """`pages[i]` says whether page i is handed out."""

    allocations = Bundle("allocations")

    def __init__(self):
        super().__init__()
        self.pool = Pool(BASE, NUM_PAGES * PAGE + 100, PAGE_SHIFT)
        self.pages = [False] * NUM_PAGES

    def free_runs(self):
        text = "".join(" #"[used] for used in self.pages)
        return [len(run) for run in text.split("#") if run]

    def mark(self, address, pages, used):
        offset = address - BASE
        assert offset % PAGE == 0
        first = offset // PAGE
        assert 0 <= first <= first + pages <= NUM_PAGES
        assert self.pages[first : first + pages] == [not used] * pages
        self.pages[first : first + pages] = [used] * pages

    @rule(target=allocations, tensor_bytes=st.integers(1, 7 * PAGE), count=st.integers(1, 4))
    def allocate(self, tensor_bytes, count):
        pages = -(-tensor_bytes // PAGE)
        runs = self.free_runs()
        fits = sum(run // pages for run in runs) >= count
        if not fits:
            with pytest.raises(OutOfMemory) as caught:
                self.pool.allocate(tensor_bytes, count)
            assert caught.value.asked == pages * count * PAGE
            assert caught.value.free == sum(runs) * PAGE
            assert caught.value.largest_free == max(runs, default=0) * PAGE
            return (), 0
        addresses = self.pool.allocate(tensor_bytes, count)
        assert len(addresses) == count
        if max(runs) >= pages * count:
            assert addresses == tuple(addresses[0] + i * pages * PAGE for i in range(count))
        for address in addresses:
            self.mark(address, pages, True)
        return addresses, pages

    @rule(allocation=consumes(allocations))
    def free(self, allocation):
        addresses, pages = allocation
        self.pool.free(addresses)
        for address in addresses:
            self.mark(address, pages, False)

    @invariant()
    def free_memory_is_known_and_joined(self):
        use = self.pool.statistics()
        runs = self.free_runs()
        assert use.size == NUM_PAGES * PAGE
        assert use.free == sum(runs) * PAGE
        assert use.largest_free == max(runs, default=0) * PAGE


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
