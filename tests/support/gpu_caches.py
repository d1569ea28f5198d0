"""Caches in a GPU's memory for tests, and their counterparts in host memory."""

from __future__ import annotations

import json

import numpy as np

from llm_datadist import CacheDesc, DataType, Placement
from support.instances import Held, pattern, zeros

TENSORS, UNITS, WORDS = 2, 64, 8192  # 8 MiB: more than a slot holds with what comes before it
SHAPE = (TENSORS, UNITS, WORDS)
ORDER = [int(at) for at in np.random.default_rng(1).permutation(UNITS)]
EVERY = list(range(UNITS))
POOL = json.dumps({"memory_size": 48 << 20, "page_shift": 16})


def desc(placement=Placement.DEVICE, units=UNITS):
    return CacheDesc(TENSORS, [units, WORDS], DataType.DT_UINT64, placement)


class Pooled:
    """A blocks cache from a pool of a GPU."""

    def __init__(self, side, gpu, seed=0, key=None):
        self._gpu = gpu
        name = None if key is None else side.blocks_key(key)
        self.cache = side.manager.allocate_blocks_cache(desc(), name)
        self.data = pattern(SHAPE, seed) if seed else zeros(*SHAPE)

    @property
    def data(self):
        return np.stack([self._gpu.read(each, SHAPE[1:]) for each in self.cache.tensor_addrs])

    @data.setter
    def data(self, words):
        for address, tensor in zip(self.cache.tensor_addrs, words, strict=True):
            self._gpu.write(address, tensor)


class OnGpu:
    """A blocks cache in a GPU's memory."""

    def __init__(self, side, gpu, seed=0, key=None, placement=Placement.DEVICE):
        self._gpu = gpu
        size = self.tensor_bytes = UNITS * WORDS * 8
        self.addresses = [gpu.allocate(size) for _ in range(TENSORS)]
        self.data = pattern(SHAPE, seed) if seed else zeros(*SHAPE)
        desc = CacheDesc(TENSORS, [UNITS, WORDS], DataType.DT_UINT64, placement)
        name = None if key is None else side.blocks_key(key)
        self.cache = side.manager.register_blocks_cache(desc, self.addresses, name)
        side.held.append(Held(side, self.cache, None))

    @property
    def data(self):
        return np.stack([self._gpu.read(each, (UNITS, WORDS)) for each in self.addresses])

    @data.setter
    def data(self, words):
        for address, tensor in zip(self.addresses, words, strict=True):
            self._gpu.write(address, tensor)


def cache_on(where, side, gpu, seed=0, key=None):
    if where == "gpu":
        return OnGpu(side, gpu, seed, key)
    return side.blocks(seed, key, tensors=TENSORS, units=UNITS, words=WORDS)
