"""Every method with every kind of mistake (api.md 1.1): the class of error, its text, no effect."""

import inspect
import re

import numpy as np
import pytest

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    CacheManager,
    DataType,
    LLMClusterInfo,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
    MemInfo,
    Memtype,
    TransferConfig,
)
from support.world import DEVICE, SHAPE, Ready, World


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
NO_KEY_LIST = [*NONE, (T, 1), (T, BlocksCacheKey(2)), (T, [1]), (T, [CacheKey(2, 1)])]
NO_BLOCK_LISTS = [*NONE, (T, 1), (T, "01"), (T, [1]), (T, [[0, "1"]]), (V, [[-1]])]
WRONG_BLOCKS = [*NO_LIST, (T, [0, "1"]), (T, [True]), (V, [-1])]
NO_TOKENS = [*NO_INT, *NONE, (V, -1)]
TOKENS = {
    "num_tokens": NO_TOKENS,
    "src_offset": NO_TOKENS,
    "dst_offset": NO_TOKENS,
    "layers": [(T, [0]), (T, 1)],
}
NO_LAYOUT = [(T, 1), (T, "NHD")]
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
    "describe_remote_caches": {"cluster_id": [*NO_UINT64, *NONE]},
    "link_peer": {
        "address": [
            *NONE,
            (T, 1),
            (T, ("a",)),
            (P, "a"),
            (P, ":1"),
            (V, "a:70000"),
            (V, ("a", -1)),
        ],
        "cluster_id": NO_UINT64,
        "timeout": NO_TIMEOUT,
    },
    "unlink_peer": {
        "cluster_id": [*NO_UINT64, *NONE],
        "timeout": NO_TIMEOUT,
        "force": [*NO_BOOL, *NONE],
    },
    "register_tensors": {
        "tensors": [*NONE, (T, np.zeros(4)), (T, [1]), (P, []), (P, [np.zeros((4, 4))[:, ::2]])],
        "key": [(T, 1), (T, [1]), (T, [BlocksCacheKey(1)])],
        "remote_accessible": [*NO_BOOL, *NONE],
        "placement": [(T, 1), (T, "HOST")],
        "layout": NO_LAYOUT,
    },
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
        "layout": NO_LAYOUT,
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
        "layout": NO_LAYOUT,
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
    "pull_resharded": {
        "src_cache_keys": NO_KEY_LIST,
        "dst_cache": NO_CACHE,
        "src_blocks": NO_BLOCK_LISTS,
        "dst_blocks": WRONG_BLOCKS,
        "prefer": NO_TOKENS,
        "src_layouts": [(T, 1), (T, "a"), (T, [None]), (P, [])],
    }
    | TOKENS,
    "push_resharded": {
        "dst_cache_keys": NO_KEY_LIST,
        "src_cache": NO_CACHE,
        "src_blocks": WRONG_BLOCKS,
        "dst_blocks": NO_BLOCK_LISTS,
    }
    | TOKENS,
    "explain_resharded": {
        "cache_keys": NO_KEY_LIST,
        "cache": NO_CACHE,
        "remote_blocks": NO_BLOCK_LISTS,
        "local_blocks": WRONG_BLOCKS,
        "push": NO_BOOL,
        "prefer": NO_TOKENS,
    }
    | TOKENS,
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
