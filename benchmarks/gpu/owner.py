"""The process that owns the peer's caches; does what it reads from its pipe."""

from __future__ import annotations

import contextlib

import numpy as np

from gpu.memory import Gpu
from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    DataType,
    LLMClusterInfo,
    LLMConfig,
    LLMDataDist,
    LLMRole,
    LLMStatusCode,
    Placement,
)

TIMEOUT_MS = 20_000


def pattern(size):
    return np.arange(size // 8, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def instance(cluster_id, backend):
    config = LLMConfig()
    config.enable_cache_manager = True
    config.device = "cuda"
    config.transfer_backend = backend
    config.listen_ip_info = "127.0.0.1:0"
    config.sync_kv_timeout = TIMEOUT_MS
    config.allow_anonymous = True
    made = LLMDataDist(LLMRole.MIX, cluster_id)
    made.init(config.generate_options())
    return made


def register(made, address, size, block_bytes, key=None, *, on_gpu=True):
    desc = CacheDesc(
        1,
        [size // block_bytes, block_bytes // 8],
        DataType.DT_UINT64,
        Placement.DEVICE if on_gpu else Placement.HOST,
    )
    return made.cache_manager.register_blocks_cache(desc, [address], key, remote_accessible=True)


def link(made, address):
    info = LLMClusterInfo()
    info.remote_cluster_id = 1
    info.append_local_ip_info("127.0.0.1", 0)
    info.append_remote_ip_info(*address)
    status, each = made.link_clusters([info], TIMEOUT_MS)
    if status != LLMStatusCode.LLM_SUCCESS:
        raise RuntimeError(f"link_clusters: {status} {each}")


def own(pipe, backend, size, block_bytes, *, on_gpu):
    """Own one cache under model 0 until the pipe is closed."""
    gpu, made = Gpu(), instance(1, backend)
    if on_gpu:
        address = gpu.allocate(size)
        gpu.write(address, pattern(size))
    else:
        data = pattern(size)
        address = data.ctypes.data
    register(made, address, size, block_bytes, BlocksCacheKey(1, 0), on_gpu=on_gpu)
    pipe.send(made.listen_address)
    with contextlib.suppress(EOFError):
        pipe.recv()
    made.finalize()
