"""Mistakes that new users make: what is done, and what the text about it has."""

from __future__ import annotations

import numpy as np

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LLMClusterInfo,
    LLMDataDist,
    LLMRole,
    layouts,
)
from support.first_generation import desc_of
from support.first_generation import options_of as first_generation_options
from support.first_mistake_calls import (
    KEY,
    Mistake,
    allocated,
    command,
    extra_config,
    first_generation,
    init,
    link_between,
    link_to_another_server,
    listen_twice,
    metrics_on_a_taken_port,
    metrics_without_the_extra,
    of,
    set_option,
    two_generations,
    unequal_types,
    unregistered_twice,
    without_layout,
)

ARRAY = np.zeros((4, 64), np.float32)
READ_ONLY = ARRAY.copy()
READ_ONLY.flags.writeable = False
POOL = '{"memory_size": 1048576}'
MIB = CacheDesc(2, [4, 1 << 20], DataType.DT_FLOAT)

LINKS = {
    "a port where nothing listens": Mistake(
        lambda w: w.near.link_peer("127.0.0.1:1"),
        "link_peer",
        "127.0.0.1:1",
        "check that the peer listens there",
    ),
    "a port of another server": Mistake(
        link_to_another_server, "link_peer", "127.0.0.1:", "check address"
    ),
    "another cluster than listens there": Mistake(
        lambda w: w.near.link_peer(w.sides[1].listen_address, cluster_id=99),
        "link_peer",
        "99",
        "correct",
    ),
    "an address without a port": Mistake(
        lambda w: w.near.link_peer("127.0.0.1"), "link_peer", "address", "port"
    ),
    "a cluster without an address": Mistake(
        lambda w: w.near.link_clusters([LLMClusterInfo()]),
        "link_clusters",
        "clusters[0]",
        "append_remote_ip_info",
    ),
    "a peer that was never linked": Mistake(
        lambda w: w.manager.pull_blocks(BlocksCacheKey(7), w.blocks, [0], [1]),
        "pull_blocks",
        "peer cluster 7",
        "link_clusters",
    ),
    "a check of a peer that is not linked": Mistake(
        lambda w: w.near.check_link_status(7), "check_link_status", "7", "link"
    ),
    "a secret on one side": Mistake(
        lambda _: link_between({"link_secret": "correct horse"}, {}),
        "link_peer",
        "127.0.0.1:",
        "the same link_secret",
    ),
    "two secrets": Mistake(
        lambda _: link_between({"link_secret": "correct horse"}, {"link_secret": "another one"}),
        "link_peer",
        "127.0.0.1:",
        "the same link_secret",
    ),
    "two generations": Mistake(
        two_generations, "link_peer", "127.0.0.1:", "llm.EnableCacheManager alike"
    ),
    "its own cluster as a peer": Mistake(
        lambda w: w.manager.pull_blocks(BlocksCacheKey(1), w.blocks, [0], [1]),
        "pull_blocks",
        "peer cluster 1",
        "copy_blocks",
    ),
}


TRANSFERS = {
    "a key that the peer does not have": Mistake(
        lambda w: w.manager.pull_blocks(BlocksCacheKey(2, 77), w.blocks, [0], [1]),
        "pull_blocks",
        "peer cluster 2",
        "register",
    ),
    "a request that the peer does not have": Mistake(
        lambda w: w.manager.pull_cache(CacheKey(2, 77), w.slots),
        "pull_cache",
        "req_id=77",
        "register",
    ),
    "a cache id that the peer does not have": Mistake(
        lambda w: w.manager.pull_cache(CacheKeyByIdAndIndex(2, 77), w.slots),
        "pull_cache",
        "cache_id=77",
        "register",
    ),
    "blocks of a cache of slots": Mistake(
        lambda w: w.manager.pull_blocks(KEY, w.slots, [0], [1]),
        "pull_blocks",
        "dst_cache",
        "register_blocks_cache",
    ),
    "slots of a cache of blocks": Mistake(
        lambda w: w.manager.pull_cache(CacheKeyByIdAndIndex(2, 1), w.blocks),
        "pull_cache",
        "cache 2",
        "register_cache",
    ),
    "a key of a request to push to": Mistake(
        lambda w: w.manager.push_blocks(CacheKey(2, 1), w.blocks, [0], [1]),
        "push_blocks",
        "dst_cache_key",
        "BlocksCacheKey",
    ),
    "lists of unequal lengths": Mistake(
        lambda w: w.manager.pull_blocks(KEY, w.blocks, [0, 1], [2]),
        "pull_blocks",
        "src_blocks",
        "equal length",
    ),
    "a destination twice": Mistake(
        lambda w: w.manager.pull_blocks(KEY, w.blocks, [0, 1], [2, 2]),
        "pull_blocks",
        "dst_blocks",
        "once",
    ),
    "a block that the peer does not have": Mistake(
        lambda w: w.manager.pull_blocks(KEY, w.blocks, [100], [1]),
        "pull_blocks",
        "peer cluster 2",
        "give indices 0 to 3",
    ),
    "a block that the cache does not have": Mistake(
        lambda w: w.manager.pull_blocks(KEY, w.blocks, [0], [100]),
        "pull_blocks",
        "dst_blocks[0]",
        "give indices below 4",
    ),
    "a negative block": Mistake(
        lambda w: w.manager.pull_blocks(KEY, w.blocks, [-1], [0]),
        "pull_blocks",
        "src_blocks[0]",
        "the first is 0",
    ),
    "one number as blocks": Mistake(
        lambda w: w.manager.pull_blocks(KEY, w.blocks, 0, 1), "pull_blocks", "blocks", "list"
    ),
    "blocks as floats": Mistake(
        lambda w: w.manager.pull_blocks(KEY, w.blocks, np.zeros(1), np.zeros(1)),
        "pull_blocks",
        "blocks",
        "integers",
    ),
    "a table of blocks": Mistake(
        lambda w: w.manager.pull_blocks(KEY, w.blocks, [0], np.zeros((1, 1), int)),
        "pull_blocks",
        "dst_blocks",
        "one dimension",
    ),
    "caches of unequal types": Mistake(unequal_types, "pull_blocks", "peer cluster 2", "equal"),
    "layers that the cache does not have": Mistake(
        lambda w: w.manager.pull_blocks(KEY, w.blocks, [0], [1], src_layer_range=range(5)),
        "pull_blocks",
        "layer_range",
        "layers",
    ),
    "a slot that the cache does not have": Mistake(
        lambda w: w.manager.pull_cache(CacheKeyByIdAndIndex(2, 1), w.slots, 9),
        "pull_cache",
        "batch_index",
        "give 0 to 3",
    ),
    "more bytes than a slot has": Mistake(
        lambda w: w.manager.pull_cache(CacheKeyByIdAndIndex(2, 1), w.slots, size=1 << 20),
        "pull_cache",
        "size",
        "256",
    ),
    "a request id of two lines": Mistake(
        lambda w: w.manager.pull_blocks(KEY, w.blocks, [0], [1], request_id="a\nb"),
        "pull_blocks",
        "request_id",
        "printable",
    ),
    "unequal caches without layouts": Mistake(without_layout, "pull_resharded", "cache", "layout"),
    "a lease of no time": Mistake(
        lambda w: w.manager.lease(KEY, [0], ttl_ms=0), "lease", "ttl_ms", "milliseconds"
    ),
}

CACHES = {
    "a strided tensor": Mistake(
        of("register_tensors", [ARRAY[:, ::2]]), "register_tensors", "tensors[0]", "contiguous"
    ),
    "a transposed tensor": Mistake(
        of("register_tensors", [ARRAY.T]), "register_tensors", "tensors[0]", "permute"
    ),
    "a read-only array": Mistake(
        of("register_tensors", [READ_ONLY]), "register_tensors", "tensors[0]", "writable"
    ),
    "a type that caches do not have": Mistake(
        of("register_tensors", [np.zeros((4, 4), np.complex64)]),
        "register_tensors",
        "tensors[0]",
        "view",
    ),
    "tensors of two shapes": Mistake(
        of("register_tensors", [ARRAY, np.zeros((8, 64), np.float32)]),
        "register_tensors",
        "tensors[1]",
        "caches of their own",
    ),
    "a list of numbers as a tensor": Mistake(
        of("register_tensors", [[1.0, 2.0]]), "register_tensors", "tensors[0]", "numpy"
    ),
    "fewer addresses than tensors": Mistake(
        of("register_cache", CacheDesc(2, [4, 64], DataType.DT_FLOAT), [8]),
        "register_cache",
        "addrs",
        "2",
    ),
    "an address of 0": Mistake(
        of("register_cache", CacheDesc(2, [4, 64], DataType.DT_FLOAT), [8, 0]),
        "register_cache",
        "addrs[1]",
        "address",
    ),
    "a cache that was unregistered": Mistake(
        unregistered_twice, "pull_blocks", "of this instance is gone", "use a cache that is live"
    ),
    "a shape without dimensions": Mistake(
        lambda _: CacheDesc(2, [], DataType.DT_FLOAT), "CacheDesc", "shape", "dimensions"
    ),
    "allocation without a pool": Mistake(
        lambda _: allocated({}, MIB), "allocate_blocks_cache", "pool", "mem_pool_cfg"
    ),
    "more than the pool has": Mistake(
        lambda _: allocated({"mem_pool_cfg": POOL}, MIB),
        "allocate_blocks_cache",
        "pool",
        "mem_pool_cfg",
    ),
    "a registered cache that is deallocated": Mistake(
        lambda w: w.manager.deallocate_blocks_cache(w.blocks),
        "deallocate_blocks_cache",
        "cache",
        "unregister_cache",
    ),
    "heads that the ranks cannot share": Mistake(
        lambda _: layouts.heads_of_rank(8, 3, 0),
        "heads_of_rank",
        "kv_heads is 8",
        "one must divide the other",
    ),
}


OPTIONS = {
    "a misspelled option": Mistake(
        lambda _: set_option("lisen_ip_info", "x"), "LLMConfig", "lisen_ip_info", "listen_ip_info"
    ),
    "an unknown data path": Mistake(
        lambda _: init(transfer_backend="rdma"), "init", "transfer_backend", "auto"
    ),
    "a listen address without a port": Mistake(
        lambda _: init(listen_ip_info="127.0.0.1"), "init", "listen_ip_info", "port"
    ),
    "a listen address of another machine": Mistake(
        lambda _: init(listen_ip_info="192.0.2.1:0"),
        "init",
        "192.0.2.1:0",
        "address of this machine",
    ),
    "a listen address that is taken": Mistake(listen_twice, "init", "127.0.0.1:", "free port"),
    "a pool that is no JSON": Mistake(
        lambda _: init(mem_pool_cfg="1 GB"), "init", "mem_pool_cfg", "give a JSON object"
    ),
    "a pool with a unit": Mistake(
        lambda _: init(mem_pool_cfg='{"memory_size": "1GB"}'), "init", "memory_size", "bytes"
    ),
    "a pool of an unknown member": Mistake(
        lambda _: init(mem_pool_cfg='{"size": 1}'), "init", "mem_pool_cfg", "memory_size"
    ),
    "a GPU that is not there": Mistake(lambda _: init(device="cuda"), "init", "llm.Device", "cpu"),
    "a time limit of 0": Mistake(
        lambda _: init(sync_kv_timeout=0), "LLMConfig", "sync_kv_timeout", "must be in [1, "
    ),
    "a call before init": Mistake(
        lambda _: LLMDataDist(LLMRole.MIX, 9).link_peer("127.0.0.1:1"),
        "link_peer",
        "not initialized",
        "init()",
    ),
    "the manager of the other generation": Mistake(
        lambda w: w.near.kv_cache_manager,
        "kv_cache_manager",
        "this instance",
        "use the cache_manager property",
    ),
    "a prompt instance that listens nowhere": Mistake(
        lambda _: LLMDataDist(LLMRole.PROMPT, 9).init(
            first_generation_options(LLMRole.PROMPT, listen=None)
        ),
        "init",
        "listenIpInfo",
        "set it to ip:port",
    ),
    "a prompt instance that pulls": Mistake(
        first_generation(
            LLMRole.PROMPT,
            lambda i: i.kv_cache_manager.pull_cache(
                CacheKey(1, 1), i.kv_cache_manager.allocate_cache(desc_of())
            ),
        ),
        "pull_cache",
        "the role of this instance",
        "switch_role",
    ),
    "a rank table that is no JSON": Mistake(
        lambda w: w.near.link("pair", {1: 0, 2: 1}, "{"), "link", "rank_table", "JSON"
    ),
    "ranks without the own cluster": Mistake(
        lambda w: w.near.link("pair", {3: 0, 4: 1}, '{"server_list": []}'),
        "link",
        "cluster_rank_info",
        "1",
    ),
    "a certificate that does not exist": Mistake(
        lambda _: init(tls_cert="/none.pem", tls_key="/none.key", tls_ca="/none.ca"),
        "init",
        "/none",
        "name a PEM file",
    ),
    "an empty secret": Mistake(lambda _: init(link_secret=""), "init", "link_secret", "give"),
}

SURROUNDINGS = {
    "metrics without the extra": Mistake(
        metrics_without_the_extra, "serve_metrics", "prometheus", "[metrics]"
    ),
    "metrics on a port that is taken": Mistake(
        metrics_on_a_taken_port, "serve_metrics", "127.0.0.1:", "a free port"
    ),
    "ping without an address": Mistake(
        lambda _: command("ping"), "ping", "HOST:PORT", "ping --help"
    ),
    "ping without a port": Mistake(
        lambda _: command("ping", "127.0.0.1"), "link_peer", "127.0.0.1", "ip:port"
    ),
    "ping where nothing listens": Mistake(
        lambda _: command("ping", "127.0.0.1:1"),
        "link_peer",
        "127.0.0.1:1",
        "check that the peer listens",
    ),
    "inspect without a port": Mistake(
        lambda _: command("inspect", "127.0.0.1"), "link_peer", "127.0.0.1", "ip:port"
    ),
    "a command that does not exist": Mistake(
        lambda _: command("benchmark"), "llm-datadist", "benchmark", "bench"
    ),
    "an option that does not exist": Mistake(
        lambda _: command("doctor", "--pear", "127.0.0.1:1"), "doctor", "--pear", "--peer"
    ),
    "bench of an unknown model": Mistake(
        lambda _: command("bench", "--preset", "gpt-9"), "bench", "gpt-9", "give"
    ),
    "bench of a trace that is not there": Mistake(
        lambda _: command("bench", "trace", "/none.jsonl"), "trace", "/none.jsonl", "give a file"
    ),
    "vLLM: a misspelled option": Mistake(
        extra_config(lisen="127.0.0.1:0"), "kv_connector_extra_config", "lisen", "listen"
    ),
    "vLLM: a number as text": Mistake(
        extra_config(hold_ms="1000"), "kv_connector_extra_config", "hold_ms", "whole number"
    ),
    "vLLM: every address": Mistake(
        extra_config(listen="0.0.0.0:0"), "kv_connector_extra_config", "listen", "one of this host"
    ),
    "vLLM: an unknown mode": Mistake(
        extra_config(mode="both"), "kv_connector_extra_config", "mode", '"pull" or "push"'
    ),
}

FIRST_MISTAKES = LINKS | TRANSFERS | CACHES | OPTIONS | SURROUNDINGS
