"""Every method with every kind of mistake (api.md 1.1): the class of error, its text, no effect."""

import inspect
import re

import numpy as np
import pytest

from llm_datadist import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    CacheManager,
    DataType,
    LayerSynchronizer,
    LLMClusterInfo,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
    MemInfo,
    Memtype,
    Placement,
    TransferConfig,
)

SHAPE = [4, 64]
POOL = '{"memory_size": 1048576}'
DEVICE = Memtype.MEM_TYPE_DEVICE


class Ready(LayerSynchronizer):
    def synchronize_layer(self, layer_index, timeout_in_millis):
        return True


class World:
    """Two linked instances with a contiguous and a blocks cache each, and good arguments."""

    def __init__(self, options_of, info_of):
        pools = {"mem_pool_cfg": POOL, "host_mem_pool_cfg": POOL}
        self.sides = [LLMDataDist(LLMRole.MIX, number) for number in (1, 2)]
        for side in self.sides:
            side.init(options_of(**pools))
        self.near, far = self.sides
        self.manager = manager = self.near.cache_manager
        assert self.near.link_clusters([info_of(far)])[0] is LLMStatusCode.LLM_SUCCESS
        self.memory = np.zeros((2, 4, 4, 64), np.float32)
        self.memory[0], self.memory[1] = 1, 2
        desc = CacheDesc(2, SHAPE, DataType.DT_FLOAT)
        self.addrs = [[t.ctypes.data for t in tensors] for tensors in self.memory.reshape(4, 2, -1)]
        slots = manager.register_cache(desc, self.addrs[0], [CacheKey(1, 1)])
        blocks = manager.register_blocks_cache(desc, self.addrs[1], BlocksCacheKey(1))
        others = far.cache_manager
        others.register_cache(desc, self.addrs[2])
        others.register_blocks_cache(desc, self.addrs[3], BlocksCacheKey(2))
        self.host = Cache.create_cpu_cache(
            CacheDesc(2, SHAPE, DataType.DT_FLOAT, Placement.HOST), self.addrs[1]
        )
        address = far.listen_address
        registering = {"cache_desc": desc, "addrs": self.addrs[0], "remote_accessible": True}
        pulling = {
            "src_layer_range": range(1),
            "dst_layer_range": range(1),
            "tensor_num_per_layer": 2,
        }
        both = {"src_blocks": [0, 1], "dst_blocks": [2, 3]}
        slot, key = CacheKeyByIdAndIndex(2, 1), BlocksCacheKey(2)
        self.good = {
            "init": {"options": options_of()},
            "finalize": {},
            "link_clusters": {"clusters": [info_of(far)], "timeout": 3000},
            "unlink_clusters": {"clusters": [info_of(address)], "timeout": 3000, "force": False},
            "link": {
                "comm_name": "a",
                "cluster_rank_info": {1: 0, 2: 1},
                "rank_table": '{"server_list": []}',
            },
            "unlink": {"comm_id": 1},
            "query_register_mem_status": {"comm_id": 1},
            "describe_domain": {"comm_id": 1},
            "switch_role": {"role": LLMRole.MIX, "switch_options": {}},
            "check_link_status": {"remote_cluster_id": 2},
            "describe_link": {"cluster_id": 2},
            "describe_relinks": {},
            "register_cache": registering | {"cache_keys": [CacheKey(1, 5)]},
            "register_blocks_cache": registering | {"blocks_cache_key": BlocksCacheKey(1, 5)},
            "unregister_cache": {"cache_id": 999},
            "allocate_cache": {"cache_desc": desc, "cache_keys": [CacheKey(1, 6)]},
            "deallocate_cache": {"cache": slots},
            "allocate_blocks_cache": {"cache_desc": desc, "blocks_cache_key": BlocksCacheKey(1, 6)},
            "deallocate_blocks_cache": {"cache": blocks},
            "remove_cache_key": {"cache_key": CacheKey(1, 7)},
            "pull_cache": {"cache_key": slot, "cache": slots, "batch_index": 1, "size": 8}
            | pulling,
            "pull_blocks": {"src_cache_key": key, "dst_cache": blocks} | both | pulling,
            "push_blocks": {"dst_cache_key": key, "src_cache": blocks} | both | pulling,
            "push_cache": {
                "dst_cache_key": slot,
                "src_cache": slots,
                "src_batch_index": 1,
                "size": 8,
            }
            | pulling,
            "transfer_cache_async": {
                "src_cache": blocks,
                "layer_synchronizer": Ready(),
                "transfer_configs": [TransferConfig(2, self.addrs[3])],
                "src_block_indices": [0],
                "dst_block_indices": [0],
                "dst_block_memory_size": 256,
            },
            "copy_cache": {
                "dst": slots,
                "src": slots,
                "dst_batch_index": 0,
                "src_batch_index": 1,
                "offset": 0,
                "size": 8,
                "req_id": 1,
            },
            "copy_blocks": {"cache": blocks, "copy_block_info": {0: [1]}},
            "swap_blocks": {"src_cache": blocks, "dst_cache": self.host, "src_to_dst": {0: 1}},
            "remap_registered_memory": {"mem_infos": [MemInfo(DEVICE, self.addrs[0][0], 8)]},
            "faulted_ranges": {},
            "lease": {"cache_key": key, "blocks": [0, 1], "ttl_ms": 1000},
            "leased_blocks": {"cache": blocks},
            "on_lease_end": {"callback": None},
        }
        self.slots, self.blocks = slots, blocks

    def method(self, name):
        return getattr(self.near if hasattr(LLMDataDist, name) else self.manager, name)

    def state(self):
        """What a refused call must leave as it is."""
        links = [link.link_id for side in self.sides for link in side._engine.links.links()]
        return self.memory.tobytes(), links, self.near.role

    def close(self):
        for side in self.sides:
            side.finalize()


@pytest.fixture(scope="module")
def world(options, info):
    made = World(options, info)
    yield made
    made.close()


T, V, A, P = TypeError, ValueError, AttributeError, LLMStatusCode.LLM_PARAM_INVALID
NO_INT = [(T, "1"), (T, 1.0), (T, True), (T, [1])]
NO_UINT64 = [*NO_INT, (V, -1), (V, 2**64)]
NO_UINT32 = [*NO_INT, (V, -1), (V, 2**32)]
NONE = [(T, None)]
NO_RANGE = [
    (T, [0]),
    (T, 1),
    (T, "0"),
    (P, range(0)),
    (P, range(1, 0)),
    (P, range(0, 2, 2)),
    (P, range(1, 2)),
    (P, range(-1, 0)),
]
NO_LAYER_SIZE = [*NO_INT, *NONE, (V, -1), (V, 256), (P, 0), (P, 3)]
NO_SIZE = [*NO_INT, *NONE, (P, 0), (P, -2), (P, 257)]
NO_CACHE = [*NONE, (T, 1), (T, "cache"), (T, CacheDesc)]
NO_KEY = [*NONE, (T, 1), (T, "key"), (T, (2, 0))]
NO_LIST = [*NONE, (T, 1), (T, "01"), (T, {0: 1}), (T, {0, 1})]
NO_BLOCKS = [
    *NO_LIST,
    (T, [0, "1"]),
    (T, [0, 1.0]),
    (T, [0, True]),
    (T, [0, None]),
    (V, [0, -1]),
    (V, [0, 2**63]),
    (V, [2**63]),
    (P, [0, 4]),
    (P, [0]),
]
NO_DESC = [
    (T, 1),
    (T, "desc"),
    (P, CacheDesc(0, SHAPE, DataType.DT_FLOAT)),
    (P, CacheDesc(2, SHAPE, DataType.DT_STRING)),
]
NO_ADDRS = [
    (A, None),
    (T, 1),
    (T, "12"),
    (T, [1, "2"]),
    (T, [1, 2.0]),
    (T, [1, True]),
    (V, [1, -1]),
    (V, [1, 2**64]),
    (V, [1, 2**64 - 8]),
    (P, [1]),
    (P, [1, 2, 3]),
    (P, []),
    (P, [1, 0]),
]
NO_KEYS = [*NONE, (T, CacheKey(1, 1)), (T, [1]), (T, [BlocksCacheKey(1)]), (T, {"a": 1})]
TOO_MANY_KEYS = [(P, [CacheKey(1, number) for number in range(50, 55)])]
BOUND_KEY = [(P, [CacheKey(1, 1)])]
NO_CLUSTERS = [*NONE, (T, LLMClusterInfo()), (T, {}), (T, "a"), (T, [None]), (T, [1])]
NO_TIMEOUT = [*NO_INT, *NONE, (P, 0), (P, -1), (P, -(2**64))]
NO_BOOL = [(T, 1), (T, 0), (T, "1")]
NO_COMM_ID = [*NO_INT, *NONE, (P, 7), (P, 0), (P, -1), (P, 2**64)]

LAYERS = {
    "src_layer_range": NO_RANGE,
    "dst_layer_range": NO_RANGE,
    "tensor_num_per_layer": NO_LAYER_SIZE,
}
#: Method -> argument -> (what is to be raised, for which value).
MISTAKES = {
    "init": {
        "options": [*NONE, (T, []), (T, "a"), (T, {1: "1"})],
    },
    "link_clusters": {
        "clusters": [*NO_CLUSTERS, (P, [LLMClusterInfo()])],
        "timeout": NO_TIMEOUT,
    },
    "unlink_clusters": {
        "clusters": [*NO_CLUSTERS, (P, [LLMClusterInfo()])],
        "timeout": NO_TIMEOUT,
        "force": [*NO_BOOL, *NONE],
    },
    "link": {
        "comm_name": [*NONE, (T, 1), (T, b"a"), (P, ""), (P, "a" * 128)],
        "cluster_rank_info": [
            *NONE,
            (T, [1, 2]),
            (T, {"1": 0, "2": 1}),
            (T, {1: "0", 2: "1"}),
            (T, {1: 0.0, 2: 1.0}),
            (P, {}),
            (P, {1: 0}),
            (P, {1: 0, 2: 1, 3: 2, 4: 3, 5: 4}),
            (P, {1: 1, 2: 0}),
            (P, {1: 0, 2: 0}),
            (P, {3: 0, 4: 1}),
            (P, {1: -1, 2: 1}),
        ],
        "rank_table": [*NONE, (T, {}), (T, b"{}"), (P, ""), (P, "{"), (P, "[]")],
    },
    "unlink": {"comm_id": NO_COMM_ID},
    "query_register_mem_status": {"comm_id": NO_COMM_ID},
    "describe_domain": {"comm_id": NO_COMM_ID},
    "switch_role": {
        "role": [*NONE, (T, 1), (T, "Prompt")],
        "switch_options": [(T, []), (T, "a")],
    },
    "check_link_status": {"remote_cluster_id": [*NO_UINT64, *NONE]},
    "describe_link": {"cluster_id": [*NO_UINT64, *NONE]},
    "register_cache": {
        "cache_desc": [*NO_DESC, (A, None)],
        "addrs": NO_ADDRS,
        "cache_keys": [*NO_KEYS, *TOO_MANY_KEYS, *BOUND_KEY],
        "remote_accessible": NO_BOOL,
    },
    "register_blocks_cache": {
        "cache_desc": [*NO_DESC, (A, None)],
        "addrs": NO_ADDRS,
        "blocks_cache_key": [(T, 1), (T, CacheKey(1, 1)), (T, [BlocksCacheKey(1)])],
        "remote_accessible": NO_BOOL,
    },
    "unregister_cache": {"cache_id": [*NO_INT, *NONE]},
    "allocate_cache": {
        "cache_desc": [*NO_DESC, *NONE],
        "cache_keys": [*NO_KEYS, *TOO_MANY_KEYS, *BOUND_KEY],
    },
    "deallocate_cache": {"cache": NO_CACHE},
    "allocate_blocks_cache": {
        "cache_desc": [*NO_DESC, *NONE],
        "blocks_cache_key": [(T, 1), (T, CacheKey(1, 1))],
    },
    "deallocate_blocks_cache": {"cache": NO_CACHE},
    "remove_cache_key": {"cache_key": [*NO_KEY, (T, BlocksCacheKey(1))]},
    "pull_cache": {
        "cache_key": [*NO_KEY, (T, BlocksCacheKey(2)), (P, CacheKeyByIdAndIndex(2, 1, 4))],
        "cache": NO_CACHE,
        "batch_index": [*NO_UINT32, *NONE, (P, 4)],
        "size": NO_SIZE,
    }
    | LAYERS,
    "pull_blocks": {
        "src_cache_key": NO_KEY,
        "dst_cache": NO_CACHE,
        "src_blocks": NO_BLOCKS,
        "dst_blocks": [*NO_BLOCKS, (P, [1, 1])],
    }
    | LAYERS,
    "push_blocks": {
        "dst_cache_key": [*NO_KEY, (T, CacheKey(2, 1)), (T, CacheKeyByIdAndIndex(2, 2))],
        "src_cache": NO_CACHE,
        "src_blocks": NO_BLOCKS,
        "dst_blocks": [*NO_BLOCKS, (P, [1, 1])],
    }
    | LAYERS,
    "push_cache": {
        "dst_cache_key": [
            *NO_KEY,
            (T, CacheKey(2, 1)),
            (T, BlocksCacheKey(2)),
            (P, CacheKeyByIdAndIndex(2, 1, 4)),
        ],
        "src_cache": NO_CACHE,
        "src_batch_index": [*NO_UINT32, *NONE, (P, 4)],
        "size": NO_SIZE,
    }
    | LAYERS,
    "transfer_cache_async": {
        "src_cache": NO_CACHE,
        "layer_synchronizer": [*NONE, (T, 1), (T, Ready)],
        "transfer_configs": [
            *NONE,
            (T, TransferConfig(2, [1, 2])),
            (T, [None]),
            (T, [1]),
            (T, "ab"),
            (P, []),
            (P, [TransferConfig(2, [1])]),
            (P, [TransferConfig(2, [1, 2], range(1, 2))]),
        ],
        "src_block_indices": [
            (T, 1),
            (T, "0"),
            (T, [1.0]),
            (T, [True]),
            (V, [-1]),
            (V, [2**63]),
            (P, [4]),
            (P, [0, 1]),
        ],
        "dst_block_indices": [
            (T, 1),
            (T, "0"),
            (T, ["0"]),
            (V, [-1]),
            (V, [2**63]),
            (P, [0, 1]),
            (P, []),
        ],
        "dst_block_memory_size": [*NO_INT, (V, -1), (P, 128)],
    },
    "copy_cache": {
        "dst": NO_CACHE,
        "src": NO_CACHE,
        "dst_batch_index": [*NO_UINT32, *NONE, (P, 4)],
        "src_batch_index": [*NO_UINT32, *NONE, (P, 4)],
        "offset": [*NO_INT, *NONE, (V, -1), (P, 256)],
        "size": NO_SIZE,
        "req_id": NO_UINT64,
    },
    "copy_blocks": {
        "cache": NO_CACHE,
        "copy_block_info": [
            *NONE,
            (T, [(0, 1)]),
            (T, {0: 1}),
            (T, {"0": [1]}),
            (T, {0: ["1"]}),
            (T, {0: [1.0]}),
            (T, {True: [1]}),
            (V, {0: [-1]}),
            (V, {-1: [0]}),
            (V, {0: [2**63]}),
            (V, {2**63: [0]}),
            (P, {0: [4]}),
            (P, {4: [0]}),
        ],
    },
    "swap_blocks": {
        "src_cache": [(A, None), (T, 1), (T, "cache")],
        "dst_cache": [(A, None), (T, 1), (T, "cache")],
        "src_to_dst": [
            (A, None),
            (T, [(0, 1)]),
            (T, {"0": 1}),
            (T, {0: "1"}),
            (T, {0: [1]}),
            (T, {0: True}),
            (V, {0: -1}),
            (V, {-1: 0}),
            (V, {0: 2**63}),
            (V, {2**63: 0}),
            (P, {0: 4}),
            (P, {4: 0}),
            (P, {0: 1, 1: 1}),
        ],
    },
    "remap_registered_memory": {
        "mem_infos": [
            *NONE,
            (T, 1),
            (T, "a"),
            (T, [1]),
            (T, {}),
            (P, []),
            (P, [MemInfo(Memtype.MEM_TYPE_HOST, 4096, 8)]),
            (P, [MemInfo(DEVICE, 4096, 8)]),
            (P, [MemInfo(DEVICE, 0, 8)]),
            (P, MemInfo(DEVICE, 4096, 0)),
            (P, MemInfo(DEVICE, 4096, -1)),
        ],
    },
    "lease": {
        "cache_key": [*NO_KEY, (T, BlocksCacheKey)],
        "blocks": [mistake for mistake in NO_BLOCKS if mistake not in [*NONE, (P, [0])]],
        "ttl_ms": [*NO_UINT32, *NONE, (P, 0)],
    },
    "leased_blocks": {"cache": NO_CACHE},
    "on_lease_end": {"callback": [(T, 1), (T, "f"), (T, [print])]},
}
METHODS = [
    (kind, name)
    for kind in (LLMDataDist, CacheManager)
    for name, _ in inspect.getmembers(kind, inspect.isfunction)
    if not name.startswith("_")
]
KEEPS_WORKERS = pytest.mark.leaves_resources("threads of the module's instances wait for more")


def arguments_of(kind, name):
    return list(inspect.signature(getattr(kind, name)).parameters)[1:]


def test_the_table_has_every_argument_of_every_method():
    """api.md checklist 5."""
    documented = {name: set(arguments_of(kind, name)) for kind, name in METHODS}
    assert {name: set(table) for name, table in MISTAKES.items()} == {
        name: names for name, names in documented.items() if names
    }


ROWS = [
    pytest.param(name, argument, mistakes, id=f"{name}-{argument}")
    for name, table in MISTAKES.items()
    for argument, mistakes in table.items()
]


@pytest.mark.parametrize(("name", "argument", "mistakes"), ROWS)
def test_mistakes(world, name, argument, mistakes):
    """api.md checklist 5."""
    before = world.state()
    call = LLMDataDist(LLMRole.MIX, 3).init if name == "init" else world.method(name)
    for raised, value in mistakes:
        with pytest.raises((T, V, A, LLMException)) as caught:
            call(**world.good[name] | {argument: value})
        found = f"{argument}={value!r} raised {caught.value!r}"
        if isinstance(raised, LLMStatusCode):
            assert type(caught.value) is LLMException, found
            assert caught.value.status_code is raised, found
            assert caught.value.operation == name, found
            assert re.match(rf"{name} failed \[{raised.name}\].*: .+; .+", str(caught.value)), found
        else:
            assert type(caught.value) is raised, found
            assert argument in str(caught.value), found
        assert world.state() == before, found


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_unknown_and_missing_arguments(world, kind, name):
    """api.md checklist 5."""
    method = world.method(name)
    with pytest.raises(TypeError):
        method(**world.good[name], no_such_argument=1)
    parameters = inspect.signature(method).parameters.values()
    if any(parameter.default is inspect.Parameter.empty for parameter in parameters):
        with pytest.raises(TypeError):
            method()


INTEGERS = [
    ("check_link_status", "remote_cluster_id", 2),
    ("pull_cache", "batch_index", 1),
    ("pull_cache", "size", 8),
    ("pull_cache", "tensor_num_per_layer", 2),
    ("pull_blocks", "src_blocks", [0, 1]),
    ("push_cache", "src_batch_index", 1),
    ("copy_cache", "offset", 0),
    ("unregister_cache", "cache_id", 998),
    ("link_clusters", "timeout", 3000),
]


@KEEPS_WORKERS
@pytest.mark.parametrize("kind", [np.int64, np.uint16, np.int32])
@pytest.mark.parametrize(("name", "argument", "value"), INTEGERS)
def test_anything_with_index_is_an_integer(world, name, argument, value, kind):
    """api.md checklist 5."""
    given = [kind(one) for one in value] if isinstance(value, list) else kind(value)
    world.method(name)(**world.good[name] | {argument: given})


OTHER_STATE = {
    *("init", "finalize", "unlink_clusters", "switch_role"),
    *("link", "unlink", "query_register_mem_status", "describe_domain"),
    *("deallocate_cache", "deallocate_blocks_cache"),
}


@KEEPS_WORKERS
def test_the_good_arguments_are_good(options, info):
    """api.md checklist 5. The mistakes above are the only thing wrong with their calls."""
    world = World(options, info)
    try:
        world.near.unlink_clusters(**world.good["unlink_clusters"])
        world.near.switch_role(**world.good["switch_role"])
        world.near.link_clusters(**world.good["link_clusters"])
        for name, arguments in world.good.items():
            if name not in OTHER_STATE:
                world.method(name)(**arguments)
    finally:
        world.close()


def documentation(kind, name):
    """The docstring of a method, with that of the method that it refers to for its errors."""
    text = inspect.getdoc(getattr(kind, name))
    for other in re.findall(r"\bas (?:for )?`(\w+)`", text):
        text += documentation(kind, other)
    return text


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_a_docstring_names_every_class_of_error_and_its_source(kind, name):
    """api.md checklist 5. What the table above makes a method raise, its docstring tells."""
    text = documentation(kind, name)
    for what in {what for mistakes in MISTAKES.get(name, {}).values() for what, _ in mistakes}:
        assert (what.name if isinstance(what, LLMStatusCode) else what.__name__) in text
    assert "Source: " in text


PROPERTIES = ["cache_manager", "kv_cache_manager", "listen_address"]


AFTER_INIT = [(kind, name) for kind, name in METHODS if name not in {"init", "finalize"}]


def check_refused(call, name, arguments):
    with pytest.raises(RuntimeError, match="not initialized") as caught:
        call(**arguments)
    assert type(caught.value) is RuntimeError
    assert name in str(caught.value)


@pytest.mark.parametrize("name", [name for kind, name in AFTER_INIT if kind is LLMDataDist])
def test_a_method_of_an_instance_never_initialized(world, name):
    """api.md checklist 6."""
    check_refused(getattr(LLMDataDist(LLMRole.MIX, 4), name), name, world.good[name])


@pytest.mark.leaves_resources("the old cache manager keeps its memory as long as it is held")
def test_methods_of_a_finalized_instance(world, options):
    """api.md checklist 6. Of the cache manager, too, and after the next init."""
    one = LLMDataDist(LLMRole.MIX, 4)
    one.init(options())
    manager = one.cache_manager
    one.finalize()
    for kind, name in AFTER_INIT:
        check_refused(
            getattr(one if kind is LLMDataDist else manager, name), name, world.good[name]
        )
    with one:
        one.init(options())
        for kind, name in AFTER_INIT:
            if kind is CacheManager:
                check_refused(getattr(manager, name), name, world.good[name])


@pytest.mark.parametrize("name", PROPERTIES)
def test_a_property_of_an_instance_that_is_not_initialized(options, name):
    """api.md checklist 6."""
    one = LLMDataDist(LLMRole.MIX, 4)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not initialized") as caught:
            getattr(one, name)
        assert type(caught.value) is RuntimeError
        one.init(options())
        one.finalize()
