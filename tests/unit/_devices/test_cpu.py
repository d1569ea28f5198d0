"""Memory of pools; huge pages."""

import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from llm_datadist._devices.cpu import PoolMemory, ask_huge_pages

HUGE = Path("/sys/kernel/mm/transparent_hugepage")
HUGE_BYTES_FILE = HUGE / "hpage_pmd_size"
NEEDS_HUGE_PAGES = pytest.mark.skipif(
    not HUGE_BYTES_FILE.exists() or "[never]" in (HUGE / "enabled").read_text(),
    reason="the kernel makes no huge pages",
)

KERNEL = tuple(int(part) for part in os.uname().release.split(".")[:2])
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


def mapped(size, huge_bytes):
    """Touched memory in small pages that begins in the middle of a huge page."""
    memory = mmap.mmap(-1, size + huge_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    array = np.frombuffer(memory, np.uint8)
    first = -array.ctypes.data % huge_bytes + huge_bytes // 2
    array[:] = 7
    return array[first : first + size - huge_bytes]


def huge_kib(address):
    """KiB of huge pages of the mapping that has an address."""
    found = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split(None, 1)[0]
        if "-" in head:
            begin, end = (int(part, 16) for part in head.split("-"))
            found = begin <= address < end
        elif found and head == "AnonHugePages:":
            return int(line.split()[1])
    return 0


@NEEDS_HUGE_PAGES
@pytest.mark.parametrize("how", ["advise", "collapse"])
def test_memory_gets_huge_pages_and_keeps_what_it_holds(how):
    """Tensors that are adjacent share them; what is not whole is left alone."""
    if how == "collapse" and KERNEL < (6, 1):
        pytest.skip("MADV_COLLAPSE is of Linux 6.1")
    huge_bytes = int(HUGE_BYTES_FILE.read_text())
    memory = mapped(6 * huge_bytes, huge_bytes)
    begin, half = memory.ctypes.data, memory.size // 2
    agreed = ask_huge_pages([(begin + half, memory.size - half), (begin, half)], how)
    assert agreed == 4 * huge_bytes
    if how == "collapse":
        assert huge_kib(begin + half) >= agreed // 1024
    assert (memory == 7).all()


def test_what_cannot_have_huge_pages_is_no_error():
    assert ask_huge_pages([], "collapse") == 0
    assert ask_huge_pages([(1 << 20, 4096), (1 << 46, 1 << 30)], "collapse") == 0
