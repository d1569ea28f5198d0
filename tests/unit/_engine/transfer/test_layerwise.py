"""Layer-wise pushes without a link: arguments, order of layers, synchronizers, tasks."""

import threading
from types import SimpleNamespace

import pytest

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKeyByIdAndIndex,
    DataType,
    LayerSynchronizer,
    LLMException,
    LLMStatusCode,
    TransferConfig,
    TransferWithCacheKeyConfig,
)
from llm_datadist._engine.instance import Lifetime
from llm_datadist._engine.transfer.layerwise import Layerwise
from llm_datadist._errors import fail
from llm_datadist._registry import CacheRegistry
from llm_datadist._tracing import request_trace
from llm_datadist.testing.in_memory_node import InMemoryNode

S = LLMStatusCode
OPERATION = "transfer_cache_async"
PEER, TENSORS, WORDS = 1, 4, 128
BLOCK_KEY, SLOT_KEY = BlocksCacheKey(PEER), CacheKeyByIdAndIndex(PEER, 1)


class Layers(LayerSynchronizer):
    """Says that layers are ready, and remembers which were asked for."""

    def __init__(self, ready=lambda layer: True):
        self.asked = []
        self.ready = ready

    def synchronize_layer(self, layer_index, timeout_in_millis):
        self.asked.append(layer_index)
        return self.ready(layer_index)


class Sender:
    """An instance whose transfers are written down: (destination, layer asked for last)."""

    def __init__(self, *, keys=True):
        self.config = SimpleNamespace(remote_accessible=keys)
        self.registry = CacheRegistry(InMemoryNode())
        self.life = Lifetime()
        self.layerwise = Layerwise(self, self)
        self.pushes = []
        self.failing = {}
        addrs = [0x10000 * (tensor + 1) for tensor in range(TENSORS)]
        desc = CacheDesc(TENSORS, [8, WORDS], DataType.DT_UINT64)
        self.blocks = self.registry.register_blocks_cache(desc, addrs)
        self.slots = self.registry.register_cache(desc, addrs)

    def push_planned(self, operation, key, local, plan, trace):
        self.pushes.append(key)
        if key in self.failing:
            raise fail(self.failing[key], operation, "it failed", "retry")

    def push_raw(self, operation, cluster_id, local, plan, trace):
        self.pushes.append((cluster_id, plan.remote.tolist(), plan.local.tolist()))

    def start(self, cache, configs, *indices, synchronizer=None):
        source, target, size = (*indices, None, None, None)[:3]
        synchronizer = synchronizer or Layers()
        return self.layerwise.start(cache, synchronizer, configs, source, target, size)

    def run(self, *arguments, **more):
        task = self.start(*arguments, **more)
        return task.synchronize(10_000), task.get_results(0)

    def refuses(self, cache, config, *indices, words=()):
        with pytest.raises(LLMException) as raised:
            self.start(cache, config if isinstance(config, list) else [config], *indices)
        assert raised.value.status_code is S.LLM_PARAM_INVALID
        for word in words:
            assert word in str(raised.value)
        assert self.pushes == []


@pytest.fixture
def sender():
    made = Sender()
    yield made
    made.layerwise.close()


@pytest.fixture
def raw_sender():
    made = Sender(keys=False)
    yield made
    made.layerwise.close()


def by_key(key, src, dst=None, slot=0):
    return TransferWithCacheKeyConfig(key, src, src if dst is None else dst, slot)


def test_bare_addresses_are_sent_tensor_by_tensor(raw_sender):
    """Two that touch are no single descriptor: they may be of two caches of the peer."""
    slot_bytes = 8 * WORDS
    touching = [0x900000 + slot_bytes * tensor for tensor in range(TENSORS)]
    config = TransferConfig(PEER, touching, None, 3)
    assert raw_sender.run(raw_sender.slots, [config]) == (S.LLM_SUCCESS, [S.LLM_SUCCESS])
    begins = [0x10000 * (tensor + 1) + 3 * slot_bytes for tensor in range(TENSORS)]
    assert raw_sender.pushes == [
        (PEER, touching[:2], begins[:2]),
        (PEER, touching[2:], begins[2:]),
    ]


def test_each_layer_of_some_config_is_asked_for_once_in_order(sender):
    keys = [BlocksCacheKey(PEER, number) for number in range(2)]
    configs = [by_key(keys[0], range(1, 2), range(5, 6)), by_key(keys[1], range(2))]
    synchronizer = Layers()
    assert sender.run(sender.blocks, configs, synchronizer=synchronizer)[1] == [S.LLM_SUCCESS] * 2
    assert synchronizer.asked == [0, 1]
    assert sender.pushes[0] == keys[1]
    assert sorted(map(str, sender.pushes[1:])) == sorted(map(str, keys))


def raising(layer):
    raise RuntimeError("the model has failed")


def leaving(layer):
    raise SystemExit(1)


@pytest.mark.expects_log("synchronize_layer")
@pytest.mark.parametrize("refuse", [lambda layer: False, raising, leaving, lambda layer: None])
def test_a_synchronizer_that_refuses(sender, refuse):
    """Item 48: those configs fail, those not started stay None, no later layer is sent."""
    keys = [BlocksCacheKey(PEER, number) for number in range(3)]
    deep = CacheDesc(8, [1, WORDS], DataType.DT_UINT64)
    cache = sender.registry.register_blocks_cache(deep, range(0x1000, 0x9000, 0x1000))
    synchronizer = Layers(lambda layer: True if layer == 0 else refuse(layer))
    ranges = [range(4), range(1), range(2, 4)]
    configs = [by_key(key, layers) for key, layers in zip(keys, ranges, strict=True)]
    status, results = sender.run(cache, configs, synchronizer=synchronizer)
    assert status is S.LLM_FAILED
    assert results == [S.LLM_FAILED, S.LLM_SUCCESS, None]
    assert synchronizer.asked == [0, 1]
    assert len(sender.pushes) == 2


@pytest.mark.expects_log("layer 0: .* it failed")
def test_a_failure_ends_its_config_alone(sender):
    good, bad = BLOCK_KEY, BlocksCacheKey(PEER, 7)
    sender.failing[bad] = S.LLM_TIMEOUT
    configs = [by_key(bad, range(2)), by_key(good, range(2))]
    status, results = sender.run(sender.blocks, configs)
    assert (status, results) == (S.LLM_TIMEOUT, [S.LLM_TIMEOUT, S.LLM_SUCCESS])
    assert (sender.pushes.count(bad), sender.pushes.count(good)) == (1, 2)


def test_a_blocked_task_blocks_no_other(sender):
    """Items 47 and 51: each has a worker of its own, and close ends them all."""
    gate = threading.Event()
    blocked = Layers(lambda layer: gate.wait(20))
    first = sender.start(sender.blocks, [by_key(BLOCK_KEY, range(1))], synchronizer=blocked)
    assert sender.run(sender.blocks, [by_key(BLOCK_KEY, range(1))])[0] is S.LLM_SUCCESS
    assert first.synchronize(0) is S.LLM_WAIT_PROCESS_TIMEOUT
    sender.layerwise.close()
    assert first.synchronize(0) is S.LLM_ENGINE_FINALIZED
    gate.set()


def test_no_layer_is_sent_after_finalize(sender):
    def ready(layer):
        if layer == 1:
            sender.layerwise.close()
        return True

    config = by_key(BLOCK_KEY, range(2))
    found = sender.run(sender.blocks, [config], synchronizer=Layers(ready))
    assert found == (S.LLM_ENGINE_FINALIZED, [S.LLM_ENGINE_FINALIZED])
    for thread in threading.enumerate():
        if thread.name == "llm_datadist-layerwise":
            thread.join(10)
    assert sender.pushes == [BLOCK_KEY]


def test_kinds_of_configs(sender, raw_sender):
    """Item 47: addresses while remote-accessible is off, keys while it is on, never mixed."""
    raw, key = TransferConfig(PEER, [4096] * 4), by_key(BLOCK_KEY, range(2))
    for user, refused in ((raw_sender, key), (sender, raw)):
        user.refuses(user.blocks, refused, [0], [0], words=["enable_remote_cache_accessible"])
        user.refuses(user.blocks, [], words=["transfer_configs is empty"])
        for mixed in ([raw, key], [key, raw], [None], ["a"]):
            with pytest.raises(TypeError, match="transfer_configs"):
                user.start(user.blocks, mixed, [0], [0])


def test_wrong_types_and_widths(sender):
    """Item 47."""
    configs = [by_key(BLOCK_KEY, range(2))]
    for wrong in ([1.0], ["1"], [None], 1):
        for indices in ((wrong, [0]), ([0], wrong)):
            with pytest.raises(TypeError, match="block_indices"):
                sender.start(sender.blocks, configs, *indices)
    for wrong in (1.0, "1"):
        with pytest.raises(TypeError, match="dst_block_memory_size"):
            sender.start(sender.blocks, configs, [0], [0], wrong)
    for indices in (([-1], [0]), ([0], [-1]), ([0], [0], -1)):
        with pytest.raises(ValueError, match="_block_"):
            sender.start(sender.blocks, configs, *indices)


NO_BLOCKS_TO_CACHE = ["transfer from blocks to cache is not supported"]


@pytest.mark.parametrize(
    ("kind", "indices", "words"),
    [
        ("blocks", (), NO_BLOCKS_TO_CACHE),
        ("blocks", ([0],), NO_BLOCKS_TO_CACHE),
        ("blocks", ([0, 1], [0]), ["2", "1"]),
        ("blocks", (None, [0]), ["src_block_indices has 0", "1"]),
        ("blocks", ([8], [0]), ["src_block_indices[0] is 8"]),
        ("blocks", ([0], [0], 512), ["dst_block_memory_size is 512"]),
        ("blocks", ([0, 1], [3, 3]), ["dst_block_indices[1] is 3 again"]),
        ("slots", (None, [], 256), ["dst_block_memory_size is 256"]),
        ("slots", (None, None, 256), ["dst_block_memory_size is 256"]),
        ("slots", (None, [0]), ["dst_block_memory_size"]),
        ("slots", (None, [0, 1, 2, 3, 4], 256), ["5 entries", "4 pieces"]),
    ],
)
def test_combinations_that_do_not_exist(raw_sender, kind, indices, words):
    """Item 47: refused before anything is sent."""
    config = TransferConfig(PEER, [4096 * (tensor + 1) for tensor in range(TENSORS)])
    raw_sender.refuses(getattr(raw_sender, kind), config, *indices, words=words)


def test_blocks_do_not_go_to_a_slot(sender):
    sender.refuses(sender.blocks, by_key(SLOT_KEY, range(2)), [0], [0], words=NO_BLOCKS_TO_CACHE)


def test_indices_belong_to_destinations_of_blocks(sender):
    """Item 47: a slot takes none, and a blocks cache needs them, whatever the source is."""
    slot, blocks = by_key(SLOT_KEY, range(1)), by_key(BLOCK_KEY, range(1))
    sender.refuses(sender.slots, slot, None, [0], 256, words=["slot", "leave the lists out"])
    sender.refuses(sender.slots, blocks, words=["without dst_block_indices", "give"])


def test_wrong_addresses(raw_sender):
    """Item 47: at use, before anything is sent."""
    four = [4096] * 4
    for config, words in (
        (TransferConfig(PEER, four[:3]), ["dst_addrs has 3", "4"]),
        (TransferConfig(PEER, four, range(1)), ["dst_addrs has 4", "2"]),
        (TransferConfig(PEER, four, range(1, 3)), ["range(1, 3)", "2 layers"]),
        (TransferConfig(PEER, four, None, 8), ["src_batch_index is 8", "8 slots"]),
    ):
        raw_sender.refuses(raw_sender.slots, config, words=words)


def test_wrong_layers_and_slots(sender):
    """Item 47: the same with keys."""
    for config, words in (
        (TransferWithCacheKeyConfig(SLOT_KEY, range(1)), ["dst_layer_range"]),
        (TransferWithCacheKeyConfig(SLOT_KEY, None, range(1)), ["src_layer_range"]),
        (by_key(SLOT_KEY, range(1), range(2)), ["1 layers", "2"]),
        (by_key(SLOT_KEY, range(3), range(3)), ["range(0, 3)"]),
        (by_key(SLOT_KEY, range(1), slot=8), ["src_batch_index is 8"]),
        (by_key(BLOCK_KEY, range(1), slot=1), ["src_batch_index is 1"]),
        (by_key(BLOCK_KEY, range(1)), ["dst_block_indices"]),
    ):
        sender.refuses(sender.slots, config, words=words)


@pytest.mark.expects_log("request cmpl-1")
@pytest.mark.parametrize("problem", ["the synchronizer", "a layer"])
def test_log_lines_name_the_request(sender, caplog, problem):
    if problem == "a layer":
        sender.failing[BLOCK_KEY] = S.LLM_FAILED
    synchronizer = Layers(lambda layer: problem == "a layer")
    trace = request_trace(OPERATION, "cmpl-1")
    task = sender.layerwise.start(
        sender.blocks, synchronizer, [by_key(BLOCK_KEY, range(1))], None, None, None, trace
    )
    assert task.synchronize(10_000) is S.LLM_FAILED
    (record,) = caplog.records
    assert record.getMessage().startswith("transfer_cache_async, request cmpl-1: ")
