"""Own pages are brought in by threads that no call has to wait for, few at a time."""

import errno
import time

import numpy as np
import pytest

from llm_datadist import _native
from support.instances import PAGE
from support.userfault import silent_pages

MOST = 16


def touched(node, address, size, entry, seconds=1.0):
    deadline = time.monotonic_ns() + int(seconds * 1e9)
    addresses, sizes = np.array([address], np.uint64), np.array([size], np.uint64)
    return node.touch(addresses, sizes, entry, deadline)[:3]


def entry_over(node, address, size):
    return node.open_entry(np.array([address], np.uint64), np.array([size], np.uint64), True)


def test_pages_of_an_entry_and_no_others(node, pages):
    memory = pages(4)
    entry = entry_over(node, memory.address, memory.size)
    assert touched(node, memory.address, memory.size, entry) == (_native.OK, 0, -1)
    assert touched(node, memory.address, memory.size + 1, entry) == (_native.DENIED, 0, 0)
    memory.unmap(3)
    outcome = touched(node, memory.address, memory.size, entry)
    assert outcome == (_native.LOCAL_FAULT, errno.EFAULT, 0)
    node.close_entry(*entry)
    assert touched(node, memory.address, PAGE, entry)[0] == _native.LOCAL_GONE


def test_silent_pages_keep_few_threads_and_no_call(node, pages):
    """Each touch of them ends at its deadline; the next ones are refused, others' work goes on."""
    memory = pages(1)
    with silent_pages(1) as address:
        if address is None:
            pytest.skip("the kernel or the user may not have userfaultfd")
        entry = entry_over(node, address, PAGE)
        num_timeouts = 0
        for _ in range(100 * MOST):  # one that starts after its deadline keeps no thread
            began = time.monotonic()
            outcome = touched(node, address, PAGE, entry, 0.02)
            assert time.monotonic() - began < 1
            if outcome[0] != _native.TIMEOUT:
                break
            num_timeouts += 1
        assert outcome == (_native.SYSTEM, errno.EUSERS, -1)
        assert num_timeouts >= MOST
        assert node.close_entry(*entry)
    good = entry_over(node, memory.address, PAGE)
    until = time.monotonic() + 10
    while touched(node, memory.address, PAGE, good)[0] != _native.OK:  # they got their pages
        assert time.monotonic() < until
        time.sleep(0.01)
