"""Copies between caches of one instance, over a real native node."""

import errno
from types import SimpleNamespace

import numpy as np
import pytest

from llm_datadist import CacheDesc, DataType, LLMException
from llm_datadist._backends.node import Node
from llm_datadist._backends.outcomes import Code, Outcome
from llm_datadist._engine.instance import Lifetime
from llm_datadist._engine.transfer.local_copies import LocalCopies
from llm_datadist._errors import FIRST_GENERATION_STATUSES, LLMStatusCode
from llm_datadist._registry import CacheRegistry

S = LLMStatusCode
TENSORS, UNITS, UNIT = 2, 4, 64
REFUSED = LLMException("marked", status_code=S.LLM_DEVICE_MEM_ERROR)


class Owner:
    """An instance with two contiguous caches and a blocks cache, all of `memory`."""

    def __init__(self):
        self.cluster_id = 1
        self.config = SimpleNamespace(sync_timeout_ms=1000, statuses={})
        self.life = Lifetime()
        self.node = Node(1)
        self.registry = CacheRegistry(self.node)
        self.memory = np.arange(3 * TENSORS * UNITS * UNIT, dtype=np.uint8)
        self.before = self.memory.copy()
        desc = CacheDesc(TENSORS, [UNITS, UNIT], DataType.DT_UINT8)
        tensor_bytes = UNITS * UNIT
        begins = [self.memory.ctypes.data + tensor_bytes * index for index in range(3 * TENSORS)]
        self.src = self.registry.register_cache(desc, begins[:2])
        self.dst = self.registry.register_cache(desc, begins[2:4])
        self.blocks = self.registry.register_blocks_cache(desc, begins[4:])
        self.copies = LocalCopies(self, self)

    def check_local(self, operation, cache, plan, peer, *, local):
        """See FaultMarks: the local side of a copy is its destination."""
        if cache.faulted and cache.cache is (self.dst if local else self.src):
            raise REFUSED

    def at(self, cache, tensor, slot):
        number = (cache.tensor_addrs[tensor] - self.memory.ctypes.data) // UNIT + slot
        return slice(number * UNIT, (number + 1) * UNIT)


@pytest.fixture
def owner():
    made = Owner()
    yield made
    made.registry.close()
    made.node.close()
    made.node.release()


def test_a_slot_is_copied_from_the_offset_on(owner):
    owner.copies.copy_slot(owner.dst, owner.src, 1, 3, 60, -1)
    expected = owner.before.copy()
    for tensor in range(TENSORS):
        to, of = owner.at(owner.dst, tensor, 1), owner.at(owner.src, tensor, 3)
        expected[to][60:] = owner.before[of][60:]
    assert (owner.memory == expected).all()


@pytest.mark.parametrize(
    ("offset", "size"), [(0, UNIT + 1), (1, UNIT), (UNIT - 1, 2), (UNIT, -1), (0, 0), (0, -2)]
)
def test_a_copy_stays_inside_the_slot(owner, offset, size):
    with pytest.raises(LLMException, match="of a slot of 64 bytes") as raised:
        owner.copies.copy_slot(owner.dst, owner.src, 0, 0, offset, size)
    assert raised.value.status_code is S.LLM_PARAM_INVALID
    assert (owner.memory == owner.before).all()


@pytest.mark.parametrize(("dst", "src"), [(UNITS, 0), (0, UNITS)])
def test_slots_that_there_are_not(owner, dst, src):
    with pytest.raises(LLMException, match="is 4, the cache has 4 slots"):
        owner.copies.copy_slot(owner.dst, owner.src, dst, src, 0, -1)


@pytest.mark.parametrize("side", ["dst", "src"])
def test_memory_known_to_be_at_fault_is_neither_read_nor_written(owner, side):
    owner.registry.get(getattr(owner, side).cache_id).faulted = (1,)
    with pytest.raises(LLMException) as raised:
        owner.copies.copy_slot(owner.dst, owner.src, 0, 0, 0, -1)
    assert raised.value is REFUSED
    assert (owner.memory == owner.before).all()


@pytest.mark.parametrize("side", ["dst", "src"])
@pytest.mark.parametrize("closing", [False, True])
def test_a_copy_whose_cache_ends_says_why(owner, side, closing):
    """Finalize closes the entries of all caches, before or after it has closed the node."""
    local = owner.registry.get(getattr(owner, side).cache_id)
    owner.node.close_entry(*local.ref)
    owner.life.closing = closing
    with pytest.raises(LLMException) as raised:
        owner.copies.copy_slot(owner.dst, owner.src, 0, 0, 0, -1)
    expected = S.LLM_ENGINE_FINALIZED if closing else S.LLM_KV_CACHE_NOT_EXIST
    assert raised.value.status_code is expected
    assert (owner.memory == owner.before).all()


def test_a_copy_onto_a_part_of_its_source_is_refused(owner):
    shifted = owner.registry.register_cache(
        CacheDesc(1, [1, UNIT], DataType.DT_UINT8), [owner.src.tensor_addrs[0] + 1]
    )
    one = owner.registry.register_cache(
        CacheDesc(1, [1, UNIT], DataType.DT_UINT8), [owner.src.tensor_addrs[0]]
    )
    with pytest.raises(LLMException, match="overlaps the source"):
        owner.copies.copy_slot(shifted, one, 0, 0, 0, -1)


def test_blocks_are_copied_one_after_the_other(owner):
    owner.copies.copy_blocks(owner.blocks, {0: [1], 1: [2, 3]})
    for tensor in range(TENSORS):
        first = owner.before[owner.at(owner.blocks, tensor, 0)]
        for block in range(UNITS):
            assert (owner.memory[owner.at(owner.blocks, tensor, block)] == first).all()


@pytest.mark.parametrize("copies", [{UNITS: [0]}, {0: [UNITS]}])
def test_copies_of_blocks_that_there_are_not(owner, copies):
    with pytest.raises(LLMException, match="the cache has 4 blocks"):
        owner.copies.copy_blocks(owner.blocks, copies)
    assert (owner.memory == owner.before).all()


def test_caches_of_the_other_kind(owner):
    with pytest.raises(LLMException, match="use copy_cache"):
        owner.copies.copy_blocks(owner.src, {0: [1]})
    with pytest.raises(LLMException, match="use copy_blocks"):
        owner.copies.copy_slot(owner.dst, owner.blocks, 0, 0, 0, -1)


def test_swaps_need_equal_types_and_blocks(owner):
    def a_cache(shape, data_type, tensors=TENSORS):
        addrs = [owner.memory.ctypes.data + 2 * UNIT * tensor for tensor in range(tensors)]
        return owner.registry.register_blocks_cache(CacheDesc(tensors, shape, data_type), addrs)

    with pytest.raises(TypeError, match="DT_INT8"):
        owner.copies.swap_blocks(owner.blocks, a_cache([2, UNIT], DataType.DT_INT8), {0: 0})
    for other in (a_cache([2, 32], DataType.DT_UINT8), a_cache([2, UNIT], DataType.DT_UINT8, 1)):
        with pytest.raises(ValueError, match="equal tensors"):
            owner.copies.swap_blocks(owner.blocks, other, {0: 0})
    fewer = a_cache([2, UNIT], DataType.DT_UINT8)
    with pytest.raises(LLMException, match="is 2, the cache has 2"):
        owner.copies.swap_blocks(owner.blocks, fewer, {0: 2})
    with pytest.raises(LLMException, match="is 2, the cache has 2"):
        owner.copies.swap_blocks(fewer, owner.blocks, {2: 0})
    with pytest.raises(LLMException, match="again"):
        owner.copies.swap_blocks(owner.blocks, fewer, {0: 1, 1: 1})


def test_fault_marks_are_of_the_memory_that_fails(owner):
    marked = []
    owner.mark = lambda cache, ref, faults: marked.extend((cache.cache, f.addr) for f in faults)
    hole = 0x7000_0000_0000
    bad = owner.registry.register_cache(
        CacheDesc(TENSORS, [UNITS, UNIT], DataType.DT_UINT8), [hole, hole + 0x10000]
    )
    for dst, src in ((owner.dst, bad), (bad, owner.src)):
        marked.clear()
        with pytest.raises(LLMException) as raised:
            owner.copies.copy_slot(dst, src, 0, 1, 0, -1)
        assert raised.value.status_code is S.LLM_DEVICE_MEM_ERROR
        offset = 0 if dst is bad else UNIT
        assert marked == [(bad, hole + offset), (bad, hole + 0x10000 + offset)]
    assert {fault.cache_id for fault in raised.value.faults} == {bad.cache_id}


@pytest.mark.parametrize(
    ("outcome", "status", "text"),
    [
        (Outcome(Code.TIMEOUT), S.LLM_TIMEOUT, "within sync_kv_timeout = 1000 ms"),
        (Outcome(Code.LOCAL_FAULT, errno.EIO), S.LLM_DEVICE_MEM_ERROR, "restart the process"),
        (Outcome(Code.SYSTEM, errno.EUSERS), S.LLM_FAILED, "make fewer calls"),
        (Outcome(Code.SYSTEM, errno.EIO), S.LLM_FAILED, "SYSTEM (Input/output error)"),
    ],
)
def test_how_a_copy_through_a_gpu_may_end(owner, outcome, status, text):
    error = owner.copies._ended("copy_cache", outcome)
    assert error.status_code is status
    assert text in str(error)


def test_a_copy_of_the_first_generation_that_is_late(owner):
    owner.config.statuses = FIRST_GENERATION_STATUSES
    error = LocalCopies(owner, owner)._ended("copy_cache", Outcome(Code.TIMEOUT))
    assert error.status_code is S.LLM_WAIT_PROCESS_TIMEOUT
