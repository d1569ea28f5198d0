"""Copies within an instance when a GPU has the memory of either side, also of one that hangs."""

import signal
import threading
from functools import partial

import numpy as np
import pytest

from llm_datadist import CacheDesc, DataType, LLMException, LLMStatusCode
from support.gpu import ProgramStream
from support.gpu_caches import EVERY, OnGpu, cache_on
from support.instances import Side, failing, finalize, link, pattern
from support.owner_process import KEY

pytestmark = pytest.mark.gpu
SHORT_MS, LONG_MS = 200, 60_000
SWAP = dict(zip(EVERY, EVERY, strict=True))


@pytest.fixture
def make_side(gpu):
    made = []

    def make(timeout_ms, cluster_id=1):
        made.append(Side(cluster_id, "host", device="cuda", sync_kv_timeout=timeout_ms))
        return made[-1]

    yield make
    finalize(*made)


class Words:
    """A cache of one tensor in a GPU's memory; contiguous unless `blocks`."""

    def __init__(self, side, gpu, units, words, seed=0, *, blocks=False, key=None):
        self._gpu, self._shape = gpu, (units, words)
        data = pattern(self._shape, seed) if seed else np.zeros(self._shape, np.uint64)
        self._address = gpu.allocate(data.nbytes)
        gpu.write(self._address, data)
        desc = CacheDesc(1, self._shape, DataType.DT_UINT64)
        if not blocks:
            self.cache = side.manager.register_cache(desc, [self._address])
        else:
            self.cache = side.manager.register_blocks_cache(desc, [self._address], key)

    @property
    def data(self):
        return self._gpu.read(self._address, self._shape)


class Copy:
    """A call of an instance that copies, and the cache that it writes."""

    def __init__(self, side, gpu, name, source="gpu", target="gpu"):
        if name == "copy_cache":
            caches = Words(side, gpu, 4, 64, seed=3), Words(side, gpu, 4, 64)
        elif name == "copy_blocks":
            caches = [cache_on(source, side, gpu, seed=3)] * 2
        else:
            caches = cache_on(source, side, gpu, seed=3), cache_on(target, side, gpu)
        self._source, self._target = caches
        self._call = getattr(side.manager, name)
        self._arguments = {
            "copy_cache": (self._target.cache, self._source.cache, 1, 2),
            "copy_blocks": (self._target.cache, {0: [1]}),
            "swap_blocks": (self._source.cache, self._target.cache, SWAP),
        }[name]
        self._pairs = {
            "copy_cache": [(2, 1)],
            "copy_blocks": [(0, 1)],
            "swap_blocks": SWAP.items(),
        }[name]

    def __call__(self):
        self._call(*self._arguments)

    @property
    def is_done(self):
        before, after = self._source.data, self._target.data
        if before.ndim > 2:
            before, after = before[0], after[0]
        return all((after[to] == before[at]).all() for at, to in self._pairs)


NAMES = ["copy_cache", "copy_blocks", "swap_blocks"]
WHERE = [("gpu", "gpu"), ("gpu", "host"), ("host", "gpu")]


@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_that_hangs_ends_the_call_by_its_deadline(make_side, gpu, stand_in, name):
    side = make_side(SHORT_MS)
    copy = Copy(side, gpu, name)
    stand_in.hang(0, hangs=True)
    with failing("LLM_TIMEOUT", name, f"sync_kv_timeout = {SHORT_MS} ms"):
        copy()
    host = side.blocks(seed=9)
    side.manager.copy_blocks(host.cache, {0: [1]})  # host memory goes on
    assert (host.data[:, 1] == host.data[:, 0]).all()
    stand_in.reset()
    copy()
    assert copy.is_done


@pytest.mark.parametrize(("source", "target"), [("gpu", "host"), ("host", "gpu")])
def test_a_call_of_the_driver_that_hangs(make_side, gpu, stand_in, source, target):
    side = make_side(SHORT_MS)
    copy = Copy(side, gpu, "swap_blocks", source, target)
    stand_in.block_copies()
    with failing("LLM_TIMEOUT", "swap_blocks"):
        copy()
    copy()  # on another thread
    assert copy.is_done


def many(side, gpu, seed, key=None):
    """Return a cache of 16 chunks, if its blocks are copied in another order."""
    return Words(side, gpu, 1 << 14, 1, seed, blocks=True, key=key)


OTHER_ORDER = np.random.default_rng(1).permutation(1 << 14).tolist()


def begins_no_chunk_after_a_timeout(side, call, written, stand_in, peer=None):
    """Whether a call with a GPU that hangs leaves the chunks alone that it had not begun."""
    stand_in.fail("")  # counts from here on
    stand_in.hang(0, hangs=True)
    with failing("LLM_TIMEOUT", call.__name__, peer=peer):
        call()
    begun = stand_in.count_copies()
    stand_in.hang(0, hangs=False)
    side.manager.unregister_cache(written.cache.cache_id)  # waits for all chunks
    assert 0 < begun < 16
    return stand_in.count_copies() == begun


def test_a_copy_begins_no_chunk_after_a_timeout(make_side, gpu, stand_in):
    side = make_side(SHORT_MS)
    source, target = many(side, gpu, 3), many(side, gpu, 0)

    def swap_blocks():
        side.manager.swap_blocks(source.cache, target.cache, dict(enumerate(OTHER_ORDER)))

    assert begins_no_chunk_after_a_timeout(side, swap_blocks, target, stand_in)


def test_a_pull_begins_no_chunk_after_a_timeout(make, gpu, stand_in):
    owner, user = make("host", device="cuda", sync_kv_timeout=SHORT_MS)
    many(owner, gpu, 3, owner.blocks_key())
    target = many(user, gpu, 0)

    def pull_blocks():
        every = list(range(1 << 14))
        user.manager.pull_blocks(owner.blocks_key(), target.cache, every, OTHER_ORDER)

    assert begins_no_chunk_after_a_timeout(user, pull_blocks, target, stand_in, peer=1)


def test_a_copy_keeps_its_caches_until_the_gpu_goes_on(make_side, gpu, stand_in):
    """So that memory is not freed under a chunk in flight."""
    side = make_side(SHORT_MS)
    source, target = OnGpu(side, gpu, seed=3), cache_on("host", side, gpu)
    stand_in.hang(0, hangs=True)
    with failing("LLM_TIMEOUT", "swap_blocks"):
        side.manager.swap_blocks(source.cache, target.cache, SWAP)
    ending = threading.Thread(
        target=side.manager.unregister_cache, args=(target.cache.cache_id,), daemon=True
    )
    ending.start()
    ending.join(0.1)
    assert ending.is_alive()
    stand_in.reset()
    ending.join()


def ends_with_finalize(side, call, stand_in):
    """Finalize the instance while a call waits for a GPU that hangs; return its exception."""
    raised = []

    def run():
        with pytest.raises(LLMException) as caught:
            call()
        raised.append(caught.value)

    stand_in.hang(0, hangs=True)
    calling = threading.Thread(target=run, daemon=True)
    calling.start()
    calling.join(0.1)
    assert calling.is_alive()
    side.instance.finalize()
    calling.join()
    return raised[0].status_code


@pytest.mark.parametrize(("source", "target"), WHERE)
def test_finalize_ends_a_copy(make_side, gpu, stand_in, source, target):
    side = make_side(LONG_MS)
    copy = Copy(side, gpu, "swap_blocks", source, target)
    assert ends_with_finalize(side, copy, stand_in) == LLMStatusCode.LLM_ENGINE_FINALIZED


def test_finalize_ends_a_pull_into_host_memory(owner, gpu, make_side, stand_in):
    side = make_side(LONG_MS, 2)
    link(side.instance, owner.address)
    owner.ask("register", "gpu", 3)
    target = cache_on("host", side, gpu)
    call = lambda: side.manager.pull_blocks(KEY, target.cache, EVERY, EVERY)  # noqa: E731
    assert ends_with_finalize(side, call, stand_in) == LLMStatusCode.LLM_ENGINE_FINALIZED


def test_finalize_ends_a_wait_for_a_stream(make_side, driver, gpu, stand_in):
    side = make_side(LONG_MS)
    source, target = side.blocks(seed=3), side.blocks()
    stream, memory = ProgramStream(driver, gpu), gpu.allocate(64)

    def call():
        stream.write(memory, pattern((8,), 1))
        side.manager.swap_blocks(source.cache, target.cache, {0: 1}, after=stream.handle)

    assert ends_with_finalize(side, call, stand_in) == LLMStatusCode.LLM_ENGINE_FINALIZED
    assert (target.data == 0).all()
    stand_in.reset()
    stream.close()


def ends_with_a_signal_handler(call, stand_in):
    """Whether a handler that raises ends a call that waits for a GPU that hangs."""

    def raise_it(_number, _frame):
        raise InterruptedError("by the handler")

    stand_in.hang(0, hangs=True)
    old = signal.signal(signal.SIGALRM, raise_it)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(InterruptedError, match="by the handler"):
            call()
    finally:
        signal.signal(signal.SIGALRM, old)
    return True


def test_a_signal_handler_ends_a_copy(make_side, gpu, stand_in):
    copy = Copy(make_side(LONG_MS), gpu, "swap_blocks")
    assert ends_with_a_signal_handler(copy, stand_in)


def test_a_signal_handler_ends_a_pull(make, gpu, stand_in):
    owner, user = make("host", device="cuda", sync_kv_timeout=LONG_MS)
    OnGpu(owner, gpu, seed=3, key=0)
    target = OnGpu(user, gpu)
    pull = partial(user.manager.pull_blocks, owner.blocks_key(), target.cache, EVERY, EVERY)
    assert ends_with_a_signal_handler(pull, stand_in)


@pytest.mark.parametrize("name", NAMES)
def test_an_uncorrectable_error(make_side, gpu, stand_in, name):
    """The driver does not say where it is, and refuses all further work."""
    side = make_side(LONG_MS)
    copy = Copy(side, gpu, name)
    stand_in.poison(side.manager.caches()[-1].tensor_addrs[0], 8 << 20)
    for _ in range(2):
        with failing("LLM_DEVICE_MEM_ERROR", name, "restart the process"):
            copy()
