"""Two linked instances, and good arguments for every method of the public interface."""

import numpy as np

from llm_datadist import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LayerSynchronizer,
    LLMDataDist,
    LLMRole,
    LLMStatusCode,
    MemInfo,
    Memtype,
    Placement,
    TransferConfig,
)
from llm_datadist.layouts import dense

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
        layout = dense(
            "NHD",
            layers=range(1),
            kv_heads=1,
            heads=range(1),
            head_size=16,
            data_type=DataType.DT_FLOAT,
            block_tokens=4,
        )
        blocks = manager.register_blocks_cache(
            desc, self.addrs[1], BlocksCacheKey(1), layout=layout
        )
        others = far.cache_manager
        others.register_cache(desc, self.addrs[2])
        others.register_blocks_cache(desc, self.addrs[3], BlocksCacheKey(2), layout=layout)
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
        tokens = {"num_tokens": 1, "src_offset": 0, "dst_offset": 0, "layers": range(1)}
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
            "link_peer": {"address": far.listen_address, "cluster_id": 2, "timeout": 3000},
            "unlink_peer": {"cluster_id": 7, "timeout": 3000, "force": False},
            "describe_links": {},
            "describe_remote_caches": {"cluster_id": 2},
            "stats": {},
            "caches": {},
            "register_tensors": {
                "tensors": [self.memory[1, 0]],
                "key": BlocksCacheKey(1, 7),
                "remote_accessible": True,
                "placement": Placement.HOST,
                "layout": None,
            },
            "register_cache": registering | {"cache_keys": [CacheKey(1, 5)]},
            "register_blocks_cache": registering
            | {"blocks_cache_key": BlocksCacheKey(1, 5), "layout": None},
            "unregister_cache": {"cache_id": 999},
            "allocate_cache": {"cache_desc": desc, "cache_keys": [CacheKey(1, 6)]},
            "deallocate_cache": {"cache": slots},
            "allocate_blocks_cache": {
                "cache_desc": desc,
                "blocks_cache_key": BlocksCacheKey(1, 6),
                "layout": None,
            },
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
            "pull_resharded": {"src_cache_keys": [key], "dst_cache": blocks}
            | {"src_blocks": [[0, 1]], "dst_blocks": [2, 3], "prefer": 0}
            | tokens,
            "push_resharded": {"dst_cache_keys": [key], "src_cache": blocks}
            | {"src_blocks": [2, 3], "dst_blocks": [[0, 1]]}
            | tokens,
            "explain_resharded": {"cache_keys": [key], "cache": blocks, "push": False, "prefer": 0}
            | {"remote_blocks": [[0, 1]], "local_blocks": [2, 3]}
            | tokens,
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
