"""Transfers wait for work of the caller on a GPU, and their bytes are there for any stream."""

import threading
import time
from types import SimpleNamespace

import pytest

from llm_datadist import LLMStatusCode, TransferConfig
from llm_datadist.cuda import EventSynchronizer
from support.gpu import ProgramStream
from support.gpu_caches import EVERY, ORDER, SHAPE, OnGpu
from support.instances import failing, pattern, zeros

pytestmark = pytest.mark.gpu
PAIRS = dict(zip(EVERY, EVERY, strict=True))


@pytest.fixture
def sides(make):
    return make("host", device="cuda", sync_kv_timeout=5000)


@pytest.fixture
def stream(driver, gpu):
    """A stream of the program."""
    one = ProgramStream(driver, gpu)
    yield one
    one.close()


def write_later(stream, cache, seed):
    for address, words in zip(cache.addresses, pattern(SHAPE, seed), strict=True):
        stream.write(address, words)


def named(stream, how):
    if how == "stream":
        return SimpleNamespace(cuda_stream=stream.handle)
    return stream.handle if how == "int" else SimpleNamespace(cuda_event=stream.event())


@pytest.mark.parametrize("how", ["stream", "event", "int"])
def test_a_push_waits_for_the_stream_that_computes_its_blocks(sides, gpu, stream, stand_in, how):
    owner, user = sides
    target, source = OnGpu(owner, gpu, key=0), OnGpu(user, gpu, seed=4)
    stand_in.delay(50_000)
    write_later(stream, source, 9)
    after = named(stream, how)
    stand_in.delay(0)
    user.manager.push_blocks(owner.blocks_key(), source.cache, EVERY, EVERY, after=after)
    assert (target.data == pattern(SHAPE, 9)).all()


def test_a_pull_waits_for_the_stream_that_still_reads_its_destination(sides, gpu, stream, stand_in):
    owner, user = sides
    OnGpu(owner, gpu, seed=3, key=0)
    target, copied = OnGpu(user, gpu, seed=4), OnGpu(user, gpu)
    stand_in.delay(50_000)
    for to, at in zip(copied.addresses, target.addresses, strict=True):
        stream.copy(to, at, pattern(SHAPE, 0)[0].nbytes)
    key = owner.blocks_key()
    user.manager.pull_blocks(key, target.cache, EVERY, EVERY, after=stream.handle)
    stand_in.delay(0)
    assert (copied.data == pattern(SHAPE, 4)).all()
    assert (target.data == pattern(SHAPE, 3)).all()


def test_local_copies_wait(sides, gpu, stream, stand_in):
    _, user = sides
    source, target = OnGpu(user, gpu), OnGpu(user, gpu)
    stand_in.delay(50_000)
    write_later(stream, source, 9)
    user.manager.swap_blocks(source.cache, target.cache, PAIRS, after=stream.handle)
    stand_in.delay(0)
    assert (target.data == pattern(SHAPE, 9)).all()
    stand_in.delay(50_000)
    write_later(stream, source, 8)
    user.manager.copy_blocks(source.cache, {0: [1]}, after=stream.handle)
    stand_in.delay(0)
    assert (source.data[:, 1] == pattern(SHAPE, 8)[:, 0]).all()


def test_work_that_does_not_end_is_a_timeout_and_moves_nothing(make, gpu, stream, stand_in):
    owner, user = make("host", device="cuda", sync_kv_timeout=300)
    target, source = OnGpu(owner, gpu, key=0), OnGpu(user, gpu, seed=4)
    stand_in.hang(0, hangs=True)
    write_later(stream, source, 9)
    before = time.monotonic()
    with failing("LLM_TIMEOUT", "push_blocks", "after", peer=1):
        key = owner.blocks_key()
        user.manager.push_blocks(key, source.cache, EVERY, EVERY, after=stream.handle)
    with failing("LLM_TIMEOUT", "swap_blocks", "after"):
        user.manager.swap_blocks(source.cache, source.cache, PAIRS, after=stream.handle)
    assert time.monotonic() - before >= 0.6
    stand_in.hang(0, hangs=False)
    assert (target.data == zeros(*SHAPE)).all()


def test_an_unknown_handle_is_refused(sides, gpu, stand_in):
    """Over a real driver any number may be taken for an address, so only the stand-in has it."""
    owner, user = sides
    source = OnGpu(user, gpu)
    OnGpu(owner, gpu, key=0)
    key, call = owner.blocks_key(), user.manager.push_blocks
    with failing("LLM_FEATURE_NOT_ENABLED", "push_blocks", "cuEventRecord"):
        call(key, source.cache, EVERY, EVERY, after=12345)
    with failing("LLM_FAILED", "push_blocks", "after", peer=1):
        call(key, source.cache, EVERY, EVERY, after=SimpleNamespace(cuda_event=12345))


def test_the_caller_s_default_stream(sides, gpu):
    owner, user = sides
    source, target = OnGpu(owner, gpu, seed=3, key=0), OnGpu(user, gpu)
    user.manager.pull_blocks(owner.blocks_key(), target.cache, EVERY, ORDER, after=0)
    assert (target.data[:, ORDER] == source.data).all()


def start(user, target, source, synchronizer, **options):
    config = TransferConfig(1, list(target.addresses))
    return user.manager.transfer_cache_async(
        source.cache, synchronizer, [config], EVERY, EVERY, **options
    )


def test_layers_are_sent_when_their_events_are_reached(sides, gpu, stream, stand_in):
    owner, user = sides
    target, source = OnGpu(owner, gpu), OnGpu(user, gpu)
    synchronizer = EventSynchronizer(1, timeout_ms=5000)
    task = start(user, target, source, synchronizer)
    stand_in.delay(50_000)
    write_later(stream, source, 9)
    synchronizer.record(0, stream.handle)
    assert task.synchronize() == LLMStatusCode.LLM_SUCCESS
    stand_in.delay(0)
    assert (target.data == pattern(SHAPE, 9)).all()


@pytest.mark.expects_log("synchronize_layer.0. returned False")
def test_a_layer_that_is_not_recorded_in_time_fails(sides, gpu):
    owner, user = sides
    target, source = OnGpu(owner, gpu), OnGpu(user, gpu)
    task = start(user, target, source, EventSynchronizer(1, timeout_ms=50))
    assert task.synchronize() == LLMStatusCode.LLM_FAILED


@pytest.mark.expects_log("synchronize_layer.0. returned False")
def test_a_pass_that_was_given_up_ends_its_transfer(sides, gpu, stream, stand_in):
    owner, user = sides
    target, source = OnGpu(owner, gpu), OnGpu(user, gpu)
    stand_in.hang(0, hangs=True)
    write_later(stream, source, 9)
    synchronizer = EventSynchronizer(1)
    synchronizer.record(0, stream.handle)
    task = start(user, target, source, synchronizer)
    ending = threading.Timer(0.1, synchronizer.abort)
    ending.start()
    assert task.synchronize(5000) == LLMStatusCode.LLM_FAILED
    ending.join()


def test_a_layer_wise_push_begins_after(sides, gpu, stream, stand_in):
    owner, user = sides
    target, source = OnGpu(owner, gpu), OnGpu(user, gpu)
    ready = EventSynchronizer(1)
    ready.record(0, 0)
    stand_in.delay(50_000)
    write_later(stream, source, 9)
    task = start(user, target, source, ready, after=stream.handle)
    assert task.synchronize() == LLMStatusCode.LLM_SUCCESS
    stand_in.delay(0)
    assert (target.data == pattern(SHAPE, 9)).all()
