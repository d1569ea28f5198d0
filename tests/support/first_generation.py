"""Instances in first-generation mode, and caches of one number per slot or block, for tests."""

from __future__ import annotations

import numpy as np

from llm_datadist import CacheDesc, DataType, LLMConfig, LLMDataDist, LLMRole, LLMStatusCode
from support.setup import ANY_PORT, info_of

POOL = 1 << 20


def options_of(role, *, listen=ANY_PORT, pool=POOL, **properties):
    """Return options as programs of the first generation make them.

    Args:
        role: A DECODER gets no listen address.
        listen: Address of the others.
        pool: Bytes of the pool, all of them used; None for the default.
    """
    config = LLMConfig()
    if pool is not None:
        config.ge_options = {"ge.flowGraphMemMaxSize": str(pool)}
        config.mem_utilization = 1.0
    if role is not LLMRole.DECODER and listen is not None:
        config.listen_ip_info = listen
    for name, value in properties.items():
        setattr(config, name, value)
    return config.generate_options()


def started(role, cluster_id, **properties):
    """Return an initialized instance; see options_of."""
    instance = LLMDataDist(role, cluster_id)
    instance.init(options_of(role, **properties))
    return instance


def link(decoder, prompt, timeout=10000):
    """Link a decoder to a prompt; return the LLMClusterInfo for the unlink."""
    info = info_of(prompt)
    linked = LLMStatusCode.LLM_SUCCESS
    assert decoder.link_clusters([info], timeout) == (linked, [linked])
    return info


def desc_of(units=4, words=64, tensors=2, **more):
    """Return the description of a cache of uint64."""
    return CacheDesc(tensors, [units, words], DataType.DT_UINT64, **more)


def filled(cache, value):
    """Write `value` + unit to each slot or block of a cache; return the cache."""
    for tensor in range(cache.cache_desc.num_tensors):
        cache.tensor(tensor)[:] = np.arange(cache.cache_desc.shape[0])[:, None] + value
    return cache


def cleared(cache):
    """Write 0 to all of a cache; return the cache."""
    for tensor in range(cache.cache_desc.num_tensors):
        cache.tensor(tensor)[:] = 0
    return cache


def values(cache):
    """Return the number that each slot or block has in all tensors; -1 where they differ."""
    found = np.stack([cache.tensor(index) for index in range(cache.cache_desc.num_tensors)])
    first = found[0, :, 0].tolist()
    same = (found == found[:1, :, :1]).all(axis=(0, 2))
    return [value if equal else -1 for value, equal in zip(first, same.tolist(), strict=True)]
