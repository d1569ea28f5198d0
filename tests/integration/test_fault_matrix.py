"""Every kind of bad memory, at either side, under every kind of transfer: checklist item 58.

The block at fault is the last one of the last tensor, as a file can only be cut off at its end.
"""

import ctypes
import errno
import mmap
import os

import numpy as np
import pytest

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    DataType,
    LayerSynchronizer,
    LLMException,
    LLMStatusCode,
    MemInfo,
    Memtype,
    TransferConfig,
    TransferWithCacheKeyConfig,
)
from support.instances import (
    LASTING,
    PAGE,
    Held,
    Pages,
    failing,
    finalize,
    linked_sides,
    pattern,
    protect,
    replace,
)

LOCAL, REMOTE = "LLM_DEVICE_MEM_ERROR", "LLM_SUSPECT_REMOTE_ERROR"
TENSORS, UNITS = 2, 4
LAST = (TENSORS - 1, UNITS - 1)
UNITS_MOVED = [0, UNITS - 1]
OWNER = 1
KEY = BlocksCacheKey(OWNER)
SLOTS = {"pull_cache", "push_cache"}
PUSHES = {"push_blocks", "push_cache", "layers by address", "layers by key"}
OPERATIONS = ["pull_blocks", "pull_cache", *sorted(PUSHES)]

pytestmark = [
    pytest.mark.expects_log("met a fault in local memory", "transfer_cache_async: layer 0"),
]


class FilePages(Pages):
    """A shared mapping of a file, which can be cut off."""

    def __init__(self, tensors, units):
        super().__init__(tensors, units)
        self.fd = os.memfd_create("test_fault_matrix")
        os.truncate(self.fd, self.size)
        replace(self.address, self.size, fd=self.fd)

    def close(self):
        super().close()
        os.close(self.fd)


class Private:
    """Memory of the caller, private pages."""

    pages = Pages
    harms_readers = True

    def __init__(self, side, *, slots):
        self.memory = self.pages(TENSORS, UNITS)
        self.memory.data[:] = pattern(self.memory.shape, side.id)
        register = side.slots if slots else side.blocks
        named = {} if slots or side.id != OWNER else {"key": 0}
        self.held = register(data=self.memory.data, **named)
        self.bad = self.memory.at(*LAST)

    def spoil(self):
        replace(self.bad, PAGE, access=0)

    def repair(self):
        replace(self.bad, PAGE)

    def close(self):
        self.held.side.clean()
        self.memory.close()


class Unmapped(Private):
    def spoil(self):
        self.memory.unmap(*LAST)


class ReadOnly(Private):
    harms_readers = False

    def spoil(self):
        protect(self.bad, PAGE, mmap.PROT_READ)


class CutOff(Private):
    pages = FilePages

    def spoil(self):
        os.truncate(self.memory.fd, self.memory.size - PAGE)

    def repair(self):
        os.truncate(self.memory.fd, self.memory.size)


class Poisoned(Private):
    """As by an uncorrectable memory error; few kernels let it be simulated."""

    def spoil(self):
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        if madvise(self.bad, PAGE, 100) != 0:  # MADV_HWPOISON
            reason = errno.errorcode[ctypes.get_errno()]
            pytest.skip(f"this kernel or user cannot poison a page ({reason})")


class Pooled:
    """Memory of the instance's pool."""

    harms_readers = True

    def __init__(self, side, *, slots):
        desc = CacheDesc(TENSORS, [UNITS, PAGE // 8], DataType.DT_UINT64)
        manager = side.manager
        if slots:
            self.cache = manager.allocate_cache(desc)
            self.free = manager.deallocate_cache
        else:
            key = KEY if side.id == OWNER else None
            self.cache = manager.allocate_blocks_cache(desc, key)
            self.free = manager.deallocate_blocks_cache
        views = [self.cache.tensor(index) for index in range(TENSORS)]
        for view, values in zip(views, pattern((TENSORS, UNITS, PAGE // 8), side.id), strict=True):
            view[:] = values
        self.held = Held(side, self.cache, views)
        self.bad = self.cache.tensor_addrs[LAST[0]] + LAST[1] * PAGE

    def spoil(self):
        protect(self.bad, PAGE, 0)

    def repair(self):
        protect(self.bad, PAGE, mmap.PROT_READ | mmap.PROT_WRITE)

    def close(self):
        self.free(self.cache)


KINDS = [Private, Unmapped, ReadOnly, CutOff, Poisoned, Pooled]


@pytest.fixture(scope="module")
def keyed(backend):
    """Sides with kept directories, for layer-wise transfers by key."""
    sides = linked_sides(backend, pool=1 << 20, enable_remote_cache_accessible=True, **LASTING)
    source, target = sides[1].blocks(), sides[0].blocks(key=0)
    config = TransferWithCacheKeyConfig(KEY, range(1), range(1))
    manager = sides[1].manager
    manager.transfer_cache_async(source.cache, Ready(), [config], [0], [0]).synchronize()
    assert target.side is sides[0]
    for side in sides:
        side.clean()
    yield sides
    finalize(*sides)


@pytest.fixture
def memory():
    """Make caches of a kind; what was done to their memory is undone."""
    made = []

    def make(kind, side, **kwargs):
        made.append(kind(side, **kwargs))
        return made[-1]

    yield make
    for one in made:
        one.repair()
        one.close()


class Ready(LayerSynchronizer):
    def synchronize_layer(self, layer_index, timeout_in_millis):
        return True


def transfer(operation, user, local, remote):
    """Carry out an operation over the units that are moved; raise what stopped a layer's push."""
    if operation in SLOTS:
        for unit in UNITS_MOVED:
            if operation == "pull_cache":
                user.manager.pull_cache(remote.slot(unit), local.cache, unit)
            else:
                user.manager.push_cache(remote.slot(unit), local.cache, unit)
        return
    if operation.startswith("layers"):
        by_key = TransferWithCacheKeyConfig(KEY, range(1), range(1))
        by_address = TransferConfig(1, remote.cache.tensor_addrs)
        config = by_key if operation == "layers by key" else by_address
        task = user.manager.transfer_cache_async(
            local.cache, Ready(), [config], UNITS_MOVED, UNITS_MOVED
        )
        status, (error,) = task.synchronize(20000), task.errors
        assert (error is None) is (status is LLMStatusCode.LLM_SUCCESS)
        if error is not None:
            assert error.status_code is status
            raise error
        return
    getattr(user.manager, operation)(KEY, local.cache, UNITS_MOVED, UNITS_MOVED)


def check_fails(operation, status, user, local, remote, faulty):
    name = "transfer_cache_async" if operation.startswith("layers") else operation
    with failing(status, name, peer=1) as error:
        transfer(operation, user, local, remote)
    (fault,) = error.value.faults
    if status == REMOTE and operation == "layers by address":  # no cache is known there
        assert (fault.cluster_id, fault.cache_id) == (OWNER, None)
        assert (fault.addr, fault.size) == (faulty.bad, PAGE)
        return
    unit = fault.slot if operation in SLOTS else fault.block
    assert (fault.cluster_id, fault.cache_id) == (faulty.held.side.id, faulty.held.id)
    assert (fault.tensor_index, unit) == LAST
    assert (fault.addr, fault.size) == (faulty.bad, PAGE)


def succeeds(status, operation, *sides):
    """Whether an operation succeeds; else with that status."""
    try:
        transfer(operation, *sides)
    except LLMException as error:
        assert error.status_code.name == status
        return False
    return True


def check_moved(source, target, places):
    for tensor, unit in places:
        assert (target.data[tensor][unit] == source.data[tensor][unit]).all(), (tensor, unit)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("status", [LOCAL, REMOTE])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_is_named_contained_and_mended(
    keyed, backend, sides, memory, kind, status, operation
):
    """Item 58: status by side, the block named, the others moved, the link up; then repaired,
    remapped, and the same call succeeds. Read-only memory does not affect readers. A
    peer that has mapped a pool may read it even where the owner's own view of it is gone."""
    owner, user = keyed if operation == "layers by key" else sides
    slots = operation in SLOTS
    remote = memory(kind if status == REMOTE else Private, owner, slots=slots)
    local = memory(kind if status == LOCAL else Private, user, slots=slots)
    faulty = remote if status == REMOTE else local
    source, target = (local, remote) if operation in PUSHES else (remote, local)
    faulty.spoil()
    read = faulty is source
    places = [(tensor, unit) for tensor in range(TENSORS) for unit in UNITS_MOVED]
    if read and kind is Pooled and backend == "host":
        if succeeds(status, operation, user, local.held, remote.held):
            check_moved(source.held, target.held, [place for place in places if place != LAST])
    elif read and not kind.harms_readers:
        transfer(operation, user, local.held, remote.held)
    else:
        check_fails(operation, status, user, local.held, remote.held, faulty)
        others = [place for place in places if place != LAST]
        check_moved(source.held, target.held, others)
    assert user.instance.describe_link(1)["state"] == "LINKED"
    faulty.repair()
    mend = MemInfo(Memtype.MEM_TYPE_DEVICE, faulty.bad, PAGE)
    faulty.held.side.manager.remap_registered_memory(mend)
    transfer(operation, user, local.held, remote.held)
    check_moved(source.held, target.held, places)


def local_copy(operation, side, source, target):
    first, last = UNITS_MOVED
    if operation == "swap_blocks":
        side.manager.swap_blocks(source.cache, target.cache, {first: first, last: last})
    else:
        side.manager.copy_cache(target.cache, source.cache, last, last)


@pytest.mark.parametrize("operation", ["swap_blocks", "copy_cache"])
@pytest.mark.parametrize("at_source", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_local_copies(sides, memory, kind, at_source, operation):
    """Item 58: the same for copies within an instance."""
    side = sides[1]
    slots = operation == "copy_cache"
    source = memory(kind if at_source else Private, side, slots=slots)
    target = memory(Private if at_source else kind, side, slots=slots)
    target.held.data[0][0], source.held.data[0][0] = 1, 2
    faulty = source if at_source else target
    faulty.spoil()
    if at_source and not kind.harms_readers:
        local_copy(operation, side, source.held, target.held)
    else:
        with failing(LOCAL, operation, "source" if at_source else "destination") as error:
            local_copy(operation, side, source.held, target.held)
        (fault,) = error.value.faults
        assert (fault.cache_id, fault.addr) == (faulty.held.id, faulty.bad)
        check_moved(source.held, target.held, [(0, LAST[1])])
    faulty.repair()
    mend = MemInfo(Memtype.MEM_TYPE_DEVICE, faulty.bad, PAGE)
    side.manager.remap_registered_memory(mend)
    local_copy(operation, side, source.held, target.held)
    check_moved(source.held, target.held, [(0, LAST[1]), LAST])
    assert np.array_equal(source.held.data[LAST[0]][LAST[1]], target.held.data[LAST[0]][LAST[1]])
