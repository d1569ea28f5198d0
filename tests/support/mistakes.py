"""Mistakes in the arguments of every method: what must be raised, for which value."""

from __future__ import annotations

import numpy as np

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LLMClusterInfo,
    LLMStatusCode,
    MemInfo,
    Memtype,
    TransferConfig,
)
from support.world import DEVICE, SHAPE, Ready

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

NO_AFTER = [(T, "0"), (T, 1.0), (T, True), (T, [1]), (V, -1), (V, 2**64)]
NO_REQUEST_ID = [(T, 1), (T, b"a"), (T, ["a"]), (P, ""), (P, "a" * 129), (P, "a\n")]
LAYERS = {
    "src_layer_range": NO_RANGE,
    "dst_layer_range": NO_RANGE,
    "tensor_num_per_layer": NO_LAYER_SIZE,
    "request_id": NO_REQUEST_ID,
    "after": NO_AFTER,
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
        "request_id": NO_REQUEST_ID,
        "after": NO_AFTER,
    },
    "copy_cache": {
        "after": NO_AFTER,
        "dst": NO_CACHE,
        "src": NO_CACHE,
        "dst_batch_index": [*NO_UINT32, *NONE, (P, 4)],
        "src_batch_index": [*NO_UINT32, *NONE, (P, 4)],
        "offset": [*NO_INT, *NONE, (V, -1), (P, 256)],
        "size": NO_SIZE,
        "req_id": NO_UINT64,
    },
    "copy_blocks": {
        "after": NO_AFTER,
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
        "after": NO_AFTER,
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
        "request_id": NO_REQUEST_ID,
        "after": NO_AFTER,
    }
    | TOKENS,
    "push_resharded": {
        "dst_cache_keys": NO_KEY_LIST,
        "src_cache": NO_CACHE,
        "src_blocks": WRONG_BLOCKS,
        "dst_blocks": NO_BLOCK_LISTS,
        "request_id": NO_REQUEST_ID,
        "after": NO_AFTER,
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
