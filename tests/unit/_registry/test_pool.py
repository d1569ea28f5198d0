from __future__ import annotations

import threading

import pytest

from llm_datadist._registry.pool import OutOfMemory, Pool

BASE = 1 << 32
KB = 1024


def pool(num_pages=16, page_shift=10):
    return Pool(BASE, num_pages << page_shift, page_shift)


def test_tensors_are_rounded_up_to_pages_and_adjacent():
    memory = pool()
    assert memory.allocate(1, 2) == (BASE, BASE + KB)
    assert memory.allocate(KB + 1, 2) == (BASE + 2 * KB, BASE + 4 * KB)
    assert memory.statistics() == (16 * KB, 10 * KB, 10 * KB, 4)


def test_freed_neighbors_become_one_run():
    memory = pool()
    extents = memory.allocate(4 * KB, 4)
    for index in (0, 2, 3, 1):
        memory.free((extents[index],))
    assert memory.statistics() == (16 * KB, 16 * KB, 16 * KB, 0)
    assert memory.allocate(16 * KB, 1) == (BASE,)


def test_takes_the_shortest_run_that_fits():
    memory = pool()
    a, _, c, _ = (memory.allocate(size * KB, 1) for size in (5, 1, 3, 1))
    memory.free(a)
    memory.free(c)
    assert memory.allocate(3 * KB, 1) == c


def test_tensors_lie_apart_where_no_run_holds_all():
    memory = pool()
    extents = memory.allocate(KB, 16)
    memory.free(extents[1:3] + extents[5:7])
    assert memory.allocate(2 * KB, 2) == (extents[1], extents[5])


def test_out_of_memory_tells_why_and_takes_nothing():
    memory = pool()
    extents = memory.allocate(4 * KB, 4)
    memory.free((extents[0], extents[2]))
    before = memory.statistics()
    with pytest.raises(OutOfMemory) as error:
        memory.allocate(5 * KB, 1)
    assert (error.value.asked, error.value.free, error.value.largest_free) == (
        5 * KB,
        8 * KB,
        4 * KB,
    )
    with pytest.raises(OutOfMemory):
        memory.allocate(3 * KB, 3)
    assert memory.statistics() == before


def test_a_pool_smaller_than_a_page_has_none():
    memory = Pool(BASE, 100, 10)
    assert memory.statistics() == (0, 0, 0, 0)
    with pytest.raises(OutOfMemory):
        memory.allocate(1, 1)


def test_refuses_what_it_did_not_hand_out():
    memory = pool()
    extents = memory.allocate(KB, 1)
    memory.free(extents)
    with pytest.raises(ValueError, match="not allocated"):
        memory.free(extents)


def test_threads_get_disjoint_memory():
    memory = pool(num_pages=64)
    owners: dict[int, int] = {}
    clashes = []

    def work(name: int) -> None:
        for _ in range(200):
            try:
                extents = memory.allocate(KB, 3)
            except OutOfMemory:
                continue
            for extent in extents:
                if owners.setdefault(extent, name) != name:
                    clashes.append(extent)
            for extent in extents:
                del owners[extent]
            memory.free(extents)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clashes == []
    assert memory.statistics().free == 64 * KB
