"""Every argument of KvCacheManager with every kind of mistake (api.md 1.1, 8)."""

import inspect
import re

import numpy as np
import pytest

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    KvCacheManager,
    LayerSynchronizer,
    LLMException,
    LLMRole,
    LLMStatusCode,
    TransferConfig,
)
from support.first_generation import desc_of, link, started
from support.mistakes import NO_AFTER

T, V, A, P = TypeError, ValueError, AttributeError, LLMStatusCode.LLM_PARAM_INVALID
NONE = [(T, None)]
NO_INT = [(T, "1"), (T, 1.0), (T, True), (T, [1])]
NO_UINT32 = [*NO_INT, *NONE, (V, -1), (V, 2**32)]
NO_CACHE = [*NONE, (T, 1), (T, "cache"), (T, CacheDesc)]
NO_KEY = [*NONE, (T, 1), (T, "key"), (T, (2, 0))]
NO_DESC = [*NONE, (T, 1), (P, desc_of(tensors=0)), (P, CacheDesc(1, [1], DataType.DT_STRING))]
NO_OFFSET = [*NO_INT, *NONE, (V, -1), (V, 2**63), (P, 505), (P, 512)]
NO_SIZE = [*NO_INT, *NONE, (P, 0), (P, -2), (P, 513)]
NO_RANGE = [(T, [0]), (T, 1), (P, range(0)), (P, range(1, 2)), (P, range(0, 2, 2))]
LAYERS = {
    "src_layer_range": NO_RANGE,
    "dst_layer_range": NO_RANGE,
    "tensor_num_per_layer": [*NO_INT, *NONE, (V, -1), (V, 256), (P, 0), (P, 3)],
}
AFTER = {"after": NO_AFTER}
NO_LIST = [*NONE, (T, 1), (T, "01"), (T, {0: 1})]
NO_BLOCKS = [*NO_LIST, (T, [0, "1"]), (T, [0, True]), (V, [0, -1]), (P, [0, 4]), (P, [0])]
MISTAKES = {
    "allocate_cache": {
        "desc": NO_DESC,
        "cache_keys": [
            *NONE,
            (T, CacheKey(1, 1)),
            (T, [1]),
            (T, [BlocksCacheKey(1)]),
            (P, [CacheKey(1, number) for number in range(5)]),
        ],
    },
    "deallocate_cache": {"cache": NO_CACHE},
    "remove_cache_key": {"key": [*NO_KEY, (T, BlocksCacheKey(1))]},
    "allocate_blocks_cache": {
        "cache_desc": NO_DESC,
        "blocks_cache_key": [(T, 1), (T, CacheKey(1, 1))],
    },
    "pull_cache": {
        "cache_key": [*NO_KEY, (T, BlocksCacheKey(2)), (P, CacheKeyByIdAndIndex(2, 1, 4))],
        "kv_cache": NO_CACHE,
        "batch_index": [*NO_UINT32, (P, 4)],
        "size": NO_SIZE,
        "src_cache_offset": NO_OFFSET,
        "dst_cache_offset": NO_OFFSET,
    }
    | LAYERS
    | AFTER,
    "pull_blocks": {
        "prompt_cache_key": NO_KEY,
        "decoder_kv_cache": NO_CACHE,
        "prompt_blocks": NO_BLOCKS,
        "decoder_blocks": [*NO_BLOCKS, (P, [1, 1])],
    }
    | LAYERS
    | AFTER,
    "transfer_cache_async": {
        "src_cache": NO_CACHE,
        "layer_synchronizer": [*NONE, (T, 1)],
        "transfer_configs": [*NONE, (T, TransferConfig(2, [1, 2])), (T, [1]), (P, [])],
        "src_block_indices": [(T, 1), (T, "0"), (T, [1.0]), (V, [-1]), (P, [4]), (P, [0, 1])],
        "dst_block_indices": [(T, 1), (T, "0"), (T, ["0"]), (V, [-1]), (P, [0, 1]), (P, [])],
    }
    | AFTER,
    "copy_cache": {
        "dst": NO_CACHE,
        "src": NO_CACHE,
        "dst_batch_index": [*NO_UINT32, (P, 4)],
        "src_batch_index": [*NO_UINT32, (P, 4)],
        "offset": [*NO_INT, *NONE, (V, -1), (P, 512)],
        "size": NO_SIZE,
        "req_id": [*NO_INT, (V, -1), (V, 2**64)],
    }
    | AFTER,
    "copy_blocks": {
        "cache": NO_CACHE,
        "copy_block_info": [*NONE, (T, [(0, 1)]), (T, {0: 1}), (T, {"0": [1]}), (V, {0: [-1]})],
    }
    | AFTER,
    "swap_blocks": {
        "src": [(A, None), (T, 1)],
        "dst": [(A, None), (T, 1)],
        "src_to_dst": [*NONE, (T, [(0, 1)]), (T, {0: "1"}), (V, {0: -1}), (P, {0: 4})],
    }
    | AFTER,
    "get_cache_tensors": {
        "cache": NO_CACHE,
        "tensor_index": [*NO_INT, *NONE, (P, -1), (P, 2), (P, 2**64)],
    },
}
METHODS = [
    name
    for name, _ in inspect.getmembers(KvCacheManager, inspect.isfunction)
    if not name.startswith("_")
]


class Ready(LayerSynchronizer):
    def synchronize_layer(self, layer_index, timeout_in_millis):
        return True


class World:
    """Two linked instances of the role MIX, with a cache of each kind, and good arguments."""

    def __init__(self):
        self.near, self.far = started(LLMRole.MIX, 1), started(LLMRole.MIX, 2)
        link(self.near, self.far)
        self.manager, others = self.near.kv_cache_manager, self.far.kv_cache_manager
        self.kept = [others.allocate_cache(desc_of())]
        self.kept.append(others.allocate_blocks_cache(desc_of(), BlocksCacheKey(2)))
        slots = self.manager.allocate_cache(desc_of())
        blocks = self.manager.allocate_blocks_cache(desc_of())
        slot = CacheKeyByIdAndIndex(2, 1)
        self.good = {
            "is_initialized": {},
            "allocate_cache": {"desc": desc_of(), "cache_keys": [CacheKey(1, 6)]},
            "deallocate_cache": {"cache": self.manager.allocate_cache(desc_of())},
            "remove_cache_key": {"key": CacheKey(1, 7)},
            "allocate_blocks_cache": {
                "cache_desc": desc_of(),
                "blocks_cache_key": BlocksCacheKey(1, 6),
            },
            "pull_cache": {"cache_key": slot, "kv_cache": slots, "batch_index": 1, "size": 8},
            "pull_blocks": {
                "prompt_cache_key": BlocksCacheKey(2),
                "decoder_kv_cache": blocks,
                "prompt_blocks": [0, 1],
                "decoder_blocks": [2, 3],
            },
            "transfer_cache_async": {
                "src_cache": blocks,
                "layer_synchronizer": Ready(),
                "transfer_configs": [TransferConfig(2, self.kept[1].tensor_addrs)],
                "src_block_indices": [0],
                "dst_block_indices": [0],
            },
            "copy_cache": {"dst": slots, "src": slots, "dst_batch_index": 0, "src_batch_index": 1},
            "copy_blocks": {"cache": blocks, "copy_block_info": {0: [1]}},
            "swap_blocks": {
                "src": blocks,
                "dst": self.manager.allocate_blocks_cache(desc_of()),
                "src_to_dst": {0: 1},
            },
            "get_cache_tensors": {"cache": slots, "tensor_index": 1},
        }

    def state(self):
        """What a refused call must leave as it is."""
        return [side._engine.registry.stats() for side in (self.near, self.far)]

    def close(self):
        self.near.finalize()
        self.far.finalize()


@pytest.fixture(scope="module")
def world():
    made = World()
    yield made
    made.close()


def arguments_of(name):
    return set(inspect.signature(getattr(KvCacheManager, name)).parameters) - {"self"}


def test_the_table_has_every_argument_of_every_method():
    documented = {name: arguments_of(name) for name in METHODS}
    assert {name: set(table) for name, table in MISTAKES.items()} == {
        name: names for name, names in documented.items() if names
    }


@pytest.mark.parametrize(
    ("name", "argument"),
    [(name, argument) for name, table in MISTAKES.items() for argument in table],
)
def test_mistakes(world, name, argument):
    before = world.state()
    for raised, value in MISTAKES[name][argument]:
        with pytest.raises((T, V, A, LLMException)) as caught:
            getattr(world.manager, name)(**world.good[name] | {argument: value})
        found = f"{argument}={value!r}: {caught.value!r}"
        if isinstance(raised, LLMStatusCode):
            assert isinstance(caught.value, LLMException), found
            assert caught.value.status_code is raised, found
            assert re.match(rf"{name} failed \[{raised.name}\].*: .+; .+", str(caught.value)), found
        else:
            assert type(caught.value) is raised, found
            assert argument in str(caught.value), found
            assert str(caught.value).startswith(f"{name}: "), found
        assert world.state() == before, found


@pytest.mark.parametrize("name", METHODS)
def test_unknown_and_missing_arguments(world, name):
    method = getattr(world.manager, name)
    with pytest.raises(TypeError, match=rf"\bKvCacheManager\.{name}\(\)"):
        method(**world.good[name], no_such_argument=1)
    parameters = inspect.signature(method).parameters.values()
    if any(parameter.default is inspect.Parameter.empty for parameter in parameters):
        with pytest.raises(TypeError, match=rf"\bKvCacheManager\.{name}\(\)"):
            method()


@pytest.mark.parametrize("kind", [np.int64, np.uint16])
def test_anything_with_index_is_an_integer(world, kind):
    good = world.good["pull_cache"]
    offsets = {"src_cache_offset": kind(8), "dst_cache_offset": kind(0), "size": kind(8)}
    world.manager.pull_cache(**good | offsets | {"batch_index": kind(1)})


@pytest.mark.leaves_resources("threads of the module's instances wait for more")
def test_the_good_arguments_are_good(world):
    for name in METHODS:
        getattr(world.manager, name)(**world.good[name])


@pytest.mark.parametrize("name", METHODS)
def test_a_docstring_names_every_class_of_error_and_its_source(name):
    text = inspect.getdoc(getattr(KvCacheManager, name))
    for other in re.findall(r"\bas `(\w+)`", text):
        text += inspect.getdoc(getattr(KvCacheManager, other))
    for what in {what for mistakes in MISTAKES.get(name, {}).values() for what, _ in mistakes}:
        assert (what.name if isinstance(what, LLMStatusCode) else what.__name__) in text
    assert "Source: " in text


def test_methods_of_a_finalized_instance(world):
    with started(LLMRole.MIX, 3) as one:
        manager = one.kv_cache_manager
    for name in METHODS:
        if name != "is_initialized":
            with pytest.raises(RuntimeError, match="not initialized") as caught:
                getattr(manager, name)(**world.good[name])
            assert type(caught.value) is RuntimeError
            assert name in str(caught.value)
