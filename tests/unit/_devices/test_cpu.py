"""Memory of pools."""

import os

import pytest

from llm_datadist._devices.cpu import PoolMemory

INSTALLED = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_pool_is_memory_until_it_is_closed():
    pool = PoolMemory(1 << 20, "llm_datadist-test")
    assert pool.size == 1 << 20
    assert pool.address
    pool.close()
    pool.close()


def test_a_pool_larger_than_the_machine_is_refused():
    """The kernel would grant it, as pages are committed when they are touched."""
    with pytest.raises(MemoryError, match=f"the machine has {INSTALLED}"):
        PoolMemory(INSTALLED + 1, "llm_datadist-test")
