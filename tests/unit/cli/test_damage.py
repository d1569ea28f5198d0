"""What --inject-fault takes away, and that it comes back: pages, and positions of a prompt."""

from __future__ import annotations

import ctypes
import mmap
import os

import numpy as np
import pytest

from llm_datadist.cli.demo import pages
from llm_datadist.cli.demo.damage import Damage
from llm_datadist.cli.demo.messages import Repair
from llm_datadist.cli.demo.model import Llama, ModelShape
from llm_datadist.cli.demo.paged_kv import PagedKvCache

SHAPE = ModelShape(layers=2, hidden=64, heads=4, kv_heads=2, feed_forward=96)
BLOCK_SIZE = 4
PAGE = mmap.PAGESIZE


_libc = ctypes.CDLL(None)
_libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]


def readable(address):
    """Whether the kernel can read a byte of this process; no signal if not."""
    reading, writing = os.pipe()
    try:
        return _libc.write(writing, address, 1) == 1
    finally:
        os.close(reading)
        os.close(writing)


def test_pages_go_and_come_back():
    array = pages.on_own_pages((3, PAGE // 4))
    first, second, third = (row.ctypes.data for row in array)
    assert first % PAGE == 0
    array[:] = 7
    pages.protect(first, PAGE)
    pages.lose(second, PAGE)
    assert [readable(place) for place in (first, second, third)] == [False, False, True]
    for place in (first, second):
        pages.renew(place, PAGE)
    assert not array[:2].any()
    assert (array[2] == 7).all()
    with pytest.raises(OSError, match="mprotect"):
        pages.protect(first + 1, PAGE)
    with pytest.raises(OSError, match="mmap"):
        pages.renew(first + 1, PAGE)


def test_lost_positions_are_recomputed_and_no_others():
    model = Llama(SHAPE, seed=1)
    cache = PagedKvCache(SHAPE.layers, 16, BLOCK_SIZE, SHAPE.kv_heads, SHAPE.head_dim)
    prompt = np.random.default_rng(0).integers(0, 256, 26).tolist()
    table = np.array([9, 3, 12, 0, 7, 5, 8])
    model.prefill(prompt, cache, table)
    whole = [tensor.copy() for tensor in cache.tensors]
    for tensor in cache.tensors:
        tensor[[12, 7]] = np.nan
    for place in (2, 4):
        last = (place + 1) * BLOCK_SIZE
        model.recompute(prompt[:last], place * BLOCK_SIZE, cache, table)
    others = [block for block in range(16) if block not in {12, 7}]
    for tensor, before in zip(cache.tensors, whole, strict=True):
        np.testing.assert_array_equal(tensor[others], before[others])
        np.testing.assert_allclose(tensor, before, rtol=2e-4, atol=2e-5)


class Manager:
    """Takes note of what is remapped."""

    def __init__(self):
        self.infos = []

    def remap_registered_memory(self, infos):
        self.infos += infos


def test_damage_is_mended():
    shape = ModelShape(layers=2, hidden=512)
    model = Llama(shape, seed=1)
    cache = PagedKvCache(shape.layers, 12, 8, shape.kv_heads, shape.head_dim, own_pages=True)
    prompt = np.random.default_rng(0).integers(0, 256, 45).tolist()
    blocks = [9, 3, 11, 0, 7, 5]
    model.prefill(prompt, cache, np.array(blocks))
    whole = [tensor.copy() for tensor in cache.tensors]
    damage = Damage(cache, model)
    injected = damage.inject(4, prompt, blocks)
    assert [(lost.tensor, lost.block) for lost in injected.lost] == [(2, 0), (3, 11)]
    assert not any(readable(lost.addr) for lost in injected.lost)
    manager = Manager()
    repaired = damage.repair(Repair(4, injected.lost), manager)
    assert repaired.tokens == 16
    assert [(info.addr, info.size) for info in manager.infos] == [
        (lost.addr, lost.size) for lost in injected.lost
    ]
    for tensor, before in zip(cache.tensors, whole, strict=True):
        np.testing.assert_allclose(tensor, before, rtol=2e-3, atol=2e-4)
