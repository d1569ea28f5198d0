"""Transfers wait for work of the caller on a GPU, and their bytes are there for any stream."""

import asyncio
import contextlib
import threading
import time
from types import SimpleNamespace

import pytest

from llm_datadist import BlocksCacheKey, CacheKey, LLMConfig, LLMRole, LLMStatusCode, TransferConfig
from llm_datadist.aio import Node, block_cache_key
from llm_datadist.cuda import EventSynchronizer
from support.first_generation import cleared, desc_of, filled, started, values
from support.first_generation import link as link_first
from support.gpu import ProgramStream
from support.gpu_caches import EVERY, ORDER, SHAPE, OnGpu
from support.instances import failing, pattern, zeros
from support.setup import ANY_PORT

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


class SeenStream:
    """A stream that notes the threads that ask for its handle."""

    def __init__(self, stream):
        self._stream, self.threads = stream, []

    @property
    def cuda_stream(self):
        self.threads.append(threading.get_ident())
        return self._stream.handle


def on_node(node, gpu, seed=0, name=None):
    """A cache in a GPU's memory; peers reach it by its name."""
    key = block_cache_key(node.name, name or "unnamed")
    manager = node.instance.cache_manager
    side = SimpleNamespace(manager=manager, held=[], blocks_key=lambda _: key)
    return OnGpu(side, gpu, seed, key=name)


@contextlib.asynccontextmanager
async def nodes(timeout_ms):
    """Two linked nodes, and the link of the second one."""
    config = LLMConfig()
    config.device, config.transfer_backend = "cuda", "host"
    config.sync_kv_timeout = timeout_ms
    async with Node("a", ANY_PORT, config=config) as a, Node("b", config=config) as b:
        yield a, b, await b.connect(a.address)


def test_an_asyncio_transfer_waits_for_the_stream_of_its_caller(gpu, stream, stand_in):
    seen = SeenStream(stream)

    async def main():
        async with nodes(5000) as (a, b, peer):
            remote, local, copied = (
                on_node(a, gpu, name="kv"),
                on_node(b, gpu, seed=4),
                on_node(b, gpu),
            )
            stand_in.delay(50_000)
            write_later(stream, local, 9)
            await peer.push("kv", EVERY, EVERY, source=local.cache, after=seen)
            stand_in.delay(0)
            assert (remote.data == pattern(SHAPE, 9)).all()
            stand_in.delay(50_000)
            for to, at in zip(copied.addresses, local.addresses, strict=True):
                stream.copy(to, at, pattern(SHAPE, 0)[0].nbytes)
            remote.data = pattern(SHAPE, 3)
            await peer.pull("kv", EVERY, EVERY, into=local.cache, after=seen)
            stand_in.delay(0)
            assert (copied.data == pattern(SHAPE, 9)).all()
            assert (local.data == pattern(SHAPE, 3)).all()

    asyncio.run(main())
    # A default stream, for example, is that of the thread that names it.
    assert seen.threads == [threading.get_ident()] * 2


def test_a_canceled_wait_for_a_stream_moves_nothing(gpu, stream, stand_in):
    async def main():
        async with nodes(60_000) as (a, b, peer):
            remote, local = on_node(a, gpu, name="kv"), on_node(b, gpu, seed=4)
            stand_in.hang(0, hangs=True)
            write_later(stream, local, 9)
            push = peer.push("kv", EVERY, EVERY, source=local.cache, after=stream.handle)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(push, 0.1)
            stand_in.hang(0, hangs=False)
            assert (remote.data == zeros(*SHAPE)).all()
            with pytest.raises(TypeError, match="after must be a CUDA stream or event"):
                await peer.pull("kv", [0], [0], into=local.cache, after="stream")

    asyncio.run(main())


FIRST = {"device": "cuda", "transfer_backend": "host"}


@pytest.fixture
def first_generation():
    """A prompt and a decoder of the first generation, linked."""
    with (
        started(LLMRole.PROMPT, 1, **FIRST) as prompt,
        started(LLMRole.DECODER, 2, sync_kv_timeout=300, **FIRST) as decoder,
    ):
        link_first(decoder, prompt)
        yield prompt.kv_cache_manager, decoder.kv_cache_manager


def check_waits(manager, calls, caches, stream, gpu, stand_in):
    """The calls move nothing while the stream is busy, and all of it afterwards."""
    busy = gpu.allocate(64)
    stand_in.hang(0, hangs=True)
    stream.write(busy, pattern((8,), 1))
    for name, arguments in calls.items():
        with failing("LLM_WAIT_PROCESS_TIMEOUT", name, "after"):
            getattr(manager, name)(*arguments, after=stream.handle)
    assert [values(cache) for cache in caches] == [[0] * 4] * len(caches)
    stand_in.hang(0, hangs=False)
    for name, arguments in calls.items():
        getattr(manager, name)(*arguments, after=stream.handle)


def test_calls_of_the_first_generation_wait(first_generation, gpu, stream, stand_in):
    prompt, decoder = first_generation
    source = filled(prompt.allocate_blocks_cache(desc_of(), BlocksCacheKey(1)), 7)
    target, other = (cleared(decoder.allocate_blocks_cache(desc_of())) for _ in range(2))
    every = list(range(4))
    copies = {
        "pull_blocks": (BlocksCacheKey(1), target, every, every),
        "swap_blocks": (target, other, {0: 1}),
        "copy_blocks": (target, {0: [1]}),
    }
    check_waits(decoder, copies, (target, other), stream, gpu, stand_in)
    assert values(source) == [7, 8, 9, 10]
    assert (values(target), values(other)) == ([7, 7, 9, 10], [0, 7, 0, 0])


def test_slots_of_the_first_generation_wait(first_generation, gpu, stream, stand_in):
    prompt, decoder = first_generation
    filled(prompt.allocate_cache(desc_of(), [key := CacheKey(1, 5)]), 7)
    target, other = (cleared(decoder.allocate_cache(desc_of())) for _ in range(2))
    copies = {"pull_cache": (key, target, 1), "copy_cache": (other, target, 2, 1)}
    check_waits(decoder, copies, (target, other), stream, gpu, stand_in)
    assert (values(target), values(other)) == ([0, 7, 0, 0], [0, 0, 7, 0])


@pytest.mark.expects_log("transfer_cache_async failed .LLM_WAIT_PROCESS_TIMEOUT.")
def test_a_layer_wise_push_of_the_first_generation_waits(first_generation, gpu, stream, stand_in):
    prompt, decoder = first_generation
    target = cleared(prompt.allocate_blocks_cache(desc_of()))
    source = filled(decoder.allocate_blocks_cache(desc_of()), 7)
    config = TransferConfig(1, list(target.per_device_tensor_addrs[0]))
    busy, ready = gpu.allocate(64), EventSynchronizer(1)
    ready.record(0, 0)
    stand_in.hang(0, hangs=True)
    stream.write(busy, pattern((8,), 1))
    start = decoder.transfer_cache_async
    task = start(source, ready, [config], [0, 1], [2, 3], after=stream.handle)
    assert task.synchronize() == LLMStatusCode.LLM_WAIT_PROCESS_TIMEOUT
    assert values(target) == [0] * 4
    stand_in.hang(0, hangs=False)
    task = start(source, ready, [config], [0, 1], [2, 3], after=stream.handle)
    assert task.synchronize() == LLMStatusCode.LLM_SUCCESS
    assert values(target) == [0, 0, 7, 8]
