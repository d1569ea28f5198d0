"""Linked instances with caches over numpy arrays, for tests of caches and transfers.

Test modules and the processes that they start import it (pytest's `pythonpath`).
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import mmap
import time

import numpy as np
import pytest

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKeyByIdAndIndex,
    DataType,
    LLMException,
    LLMStatusCode,
    Placement,
)
from llm_datadist._links.lane_terms import FIRST_LANES
from support.nixl_backends import wait_for_trial
from support.setup import ANY_PORT, info_of, started

BACKENDS = ["host", "tcp"]
PAGE = mmap.PAGESIZE
#: Options of instances that outlive a test: their links have at once the lanes that they will ever
#: have, so that no later test seems to leak lanes that were added meanwhile.
LASTING = {"lanes_per_link": FIRST_LANES}


def initialized(cluster_id, backend, *, listen=True, pool=0, page_shift=16, **options):
    """Return an initialized instance; `options` are properties of LLMConfig.

    A call may take 10 s instead of 1: where no time limit is the subject, a busy machine does no
    harm.
    """
    options = {"sync_kv_timeout": 10_000, **options}
    if pool:
        text = json.dumps({"memory_size": pool, "page_shift": page_shift})
        options |= {"mem_pool_cfg": text, "host_mem_pool_cfg": text}
    address = ANY_PORT if listen else None
    instance = started(cluster_id, listen=address, transfer_backend=backend, **options)
    wait_for_trial(instance._engine.backends)
    return instance


def link(instance, *addresses):
    """Link an instance to the listen addresses of others."""
    overall, each = instance.link_clusters([info_of(address) for address in addresses], 10000)
    assert overall is LLMStatusCode.LLM_SUCCESS, each


def pattern(shape, seed):
    """Return words that differ everywhere, and between seeds."""
    return np.arange(np.prod(shape), dtype=np.uint64).reshape(shape) + np.uint64(seed << 40)


class Held:
    """A cache and its memory: `data[tensor, slot or block, word]`."""

    def __init__(self, side, cache, data):
        self.side = side
        self.cache = cache
        self.data = data

    @property
    def id(self):
        return self.cache.cache_id

    def slot(self, index=0):
        """The key of a slot."""
        return CacheKeyByIdAndIndex(self.side.id, self.id, index)


class Side:
    """One instance and the caches that a test has made with it."""

    def __init__(self, cluster_id, backend, **options):
        self.id = cluster_id
        self.instance = initialized(cluster_id, backend, **options)
        self.manager = self.instance.cache_manager
        self.held = []

    @property
    def address(self):
        return self.instance.listen_address

    def blocks_key(self, model_id=0):
        return BlocksCacheKey(self.id, model_id)

    def blocks(self, seed=0, key=None, **kwargs):
        """Register a blocks cache; `key` is the model_id of its BlocksCacheKey."""
        name = None if key is None else self.blocks_key(key)
        return self._register(self.manager.register_blocks_cache, seed, name, **kwargs)

    def slots(self, seed=0, keys=(), **kwargs):
        """Register a contiguous cache."""
        return self._register(self.manager.register_cache, seed, keys, **kwargs)

    def _register(
        self,
        call,
        seed,
        names,
        *,
        tensors=4,
        units=8,
        words=128,
        placement=Placement.DEVICE,
        accessible=None,
        data=None,
        **more,
    ):
        if data is None:
            data = pattern((tensors, units, words), seed) if seed else zeros(tensors, units, words)
        desc = CacheDesc(len(data), list(data.shape[1:]), DataType.DT_UINT64, placement)
        addrs = [tensor.ctypes.data for tensor in data]
        held = Held(self, call(desc, addrs, names, accessible, **more), data)
        self.held.append(held)
        return held

    def clean(self):
        """Unregister what the test has registered."""
        for held in self.held:
            self.manager.unregister_cache(held.id)
        self.held.clear()


def zeros(tensors, units, words):
    return np.zeros((tensors, units, words), np.uint64)


def linked_sides(backend, count=2, **options):
    """Return sides with cluster ids 1, 2, ...; all others are linked to the first."""
    sides = [Side(number, backend, **options) for number in range(1, count + 1)]
    for side in sides[1:]:
        link(side.instance, sides[0].address)
    return sides


def finalize(*sides):
    """Finalize sides, and release what keeps their published pages mapped."""
    for side in sides:
        side.instance.finalize()
        side.manager = None
        side.held.clear()


@contextlib.contextmanager
def failing(status, operation, *words, peer=None):
    """Expect an LLMException whose text has operation, status, peer, problem and remedy."""
    with pytest.raises(LLMException) as caught:
        yield caught
    error = caught.value
    check_text(error, status, operation, *words, peer=peer)


def check_text(error, status, operation, *words, peer=None):
    text = str(error)
    assert error.status_code is getattr(LLMStatusCode, status), text
    assert error.operation == operation
    assert text.startswith(f"{operation} failed [{status}]"), text
    if peer is not None:
        assert error.cluster_id == peer
        assert f"peer cluster {peer}:" in text
    problem, _, remedy = text.rpartition("; ")
    assert problem
    assert len(remedy) > 3, text
    for word in words:
        assert str(word) in text, (word, text)


def succeeds_or(status, call, *arguments):
    """Return whether a call succeeds; it may fail with that status only."""
    try:
        call(*arguments)
    except LLMException as error:
        if error.status_code is not getattr(LLMStatusCode, status):
            raise
        return False
    return True


def eventually(condition, seconds=10.0):
    """Poll until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_MAP_FIXED = 0x10
_NO_ACCESS = 0
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
# Far from where the kernel places mappings by itself: a hole that a test makes there stays one;
# elsewhere the next mapping of any thread may fill it.
_far_away = itertools.count(0x2000_0000_0000, 1 << 32)


class Pages:
    """Private memory whose pages can be unmapped and replaced; 8 bytes per word, page by page."""

    def __init__(self, tensors, units, pages_per_unit=1):
        self.unit_bytes = pages_per_unit * PAGE
        self.shape = (tensors, units, self.unit_bytes // 8)
        self.size = tensors * units * self.unit_bytes
        self.address = _mapped(next(_far_away), self.size, 0)
        memory = (ctypes.c_uint64 * (self.size // 8)).from_address(self.address)
        self.data = np.frombuffer(memory, np.uint64).reshape(self.shape)

    def at(self, tensor, unit):
        """Address of a slot or block."""
        return self.address + (tensor * self.shape[1] + unit) * self.unit_bytes

    def unmap(self, tensor, unit):
        _check(_libc.munmap(self.at(tensor, unit), self.unit_bytes))

    def protect(self, tensor, unit, access=_NO_ACCESS):
        protect(self.at(tensor, unit), self.unit_bytes, access)

    def replace(self, tensor, unit):
        """Put new pages, all 0, where others were or are."""
        replace(self.at(tensor, unit), self.unit_bytes)

    def close(self):
        _check(_libc.munmap(self.address, self.size))


def replace(address, size, *, access=_READ_WRITE, fd=-1):
    """Put new pages, all 0 or those of a file, where others were or are."""
    assert _mapped(address, size, _MAP_FIXED, access, fd) == address


def take_away(address, size):
    """Unmap memory of a pool, and keep its place: the next mapping of any thread might fill a hole,
    and would be unmapped with the pool.
    """
    replace(address, size, access=_NO_ACCESS)


def protect(address, size, access):
    _check(_libc.mprotect(address, size, access))


def unmap(address, size):
    _check(_libc.munmap(address, size))


def _mapped(address, size, flags, access=_READ_WRITE, fd=-1):
    flags |= mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS if fd < 0 else mmap.MAP_SHARED
    found = _libc.mmap(address, size, access, flags, fd, 0)
    assert found != ctypes.c_void_p(-1).value, ctypes.get_errno()
    return found


def _check(result):
    assert result == 0, ctypes.get_errno()
