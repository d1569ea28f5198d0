"""A prefill and a decode process whose caches are in a GPU's memory; says what it has moved.

python two_processes.py [--mib 64] [--block-kib 256] [--backend nixl]
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    DataType,
    LLMClusterInfo,
    LLMConfig,
    LLMDataDist,
    LLMRole,
    LLMStatusCode,
)
from support.gpu import Gpu, load


def instance(role, cluster_id, backend):
    config = LLMConfig()
    config.enable_cache_manager = True
    config.device = "cuda"
    config.transfer_backend = backend
    config.listen_ip_info = "127.0.0.1:0"
    config.sync_kv_timeout = 20_000
    made = LLMDataDist(role, cluster_id)
    made.init(config.generate_options())
    return made


def on_gpu(made, gpu, words, units, key):
    address = gpu.allocate(words.nbytes)
    gpu.write(address, words)
    desc = CacheDesc(1, [units, words.size // units], DataType.DT_UINT64)
    return address, made.cache_manager.register_blocks_cache(desc, [address], key)


def prefill(pipe, backend, size, units):
    made, gpu = instance(LLMRole.PROMPT, 1, backend), Gpu(load())
    words = np.arange(size // 8, dtype=np.uint64)
    address, _ = on_gpu(made, gpu, words, units, BlocksCacheKey(1, 0))
    pipe.send(made.listen_address)
    pipe.recv()
    pipe.send(bool((gpu.read(address, words.shape) == words[::-1]).all()))
    pipe.recv()
    made.finalize()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--block-kib", type=int, default=256)
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args()
    size, units = options.mib << 20, (options.mib << 10) // options.block_kib
    spawn = multiprocessing.get_context("spawn")
    pipe, remote = spawn.Pipe()
    child = spawn.Process(target=prefill, args=(remote, options.backend, size, units), daemon=True)
    child.start()
    made, gpu = instance(LLMRole.DECODER, 2, options.backend), Gpu(load())
    words = np.zeros(size // 8, np.uint64)
    address, cache = on_gpu(made, gpu, words, units, None)
    info = LLMClusterInfo()
    info.remote_cluster_id = 1
    info.append_local_ip_info("127.0.0.1", 0)
    info.append_remote_ip_info(*pipe.recv())
    status, each = made.link_clusters([info], 20_000)
    assert status == LLMStatusCode.LLM_SUCCESS, each
    print(made.describe_link(1)["backend"])
    every = list(range(units))
    manager, key = made.cache_manager, BlocksCacheKey(1, 0)
    for name, call in (("pull", manager.pull_blocks), ("push", manager.push_blocks)):
        if name == "push":
            gpu.write(address, np.arange(size // 8, dtype=np.uint64)[::-1])
        for _ in range(3):
            begin = time.perf_counter()
            call(key, cache, every, every)
            print(f"{name}: {size / (time.perf_counter() - begin) / 1e9:.2f} GB/s")
        if name == "pull":
            right = (gpu.read(address, words.shape) == np.arange(size // 8, dtype=np.uint64)).all()
            assert right, "wrong bytes after the pull"
    pipe.send(None)
    assert pipe.recv(), "wrong bytes after the push"
    print("right bytes")
    made.finalize()
    pipe.send(None)
    child.join(20)


if __name__ == "__main__":
    main()
