"""Contenders that use llm-datadist through its public API only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

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
from llm_datadist.cli.bench import work
from llm_datadist.cli.bench.contender import Contender, serve
from llm_datadist.cli.bench.hosts import LOCAL, OWNER, address

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from llm_datadist import Cache
    from llm_datadist.cli.bench.work import Case, Memory

__all__ = [
    "LOCAL_ID",
    "OWNER_ID",
    "Datadist",
    "DatadistPool",
    "DatadistTcp",
    "desc_of",
    "owner",
    "owner_info",
    "register",
    "start",
]

OWNER_ID, LOCAL_ID = 1, 2
_TIMEOUT_MS = 60_000
_LINK_MS = 10_000
_MOST_ADDRESSES = 1 << 20


def start(cluster_id: int, backend: str, **properties: object) -> LLMDataDist:
    """Return an initialized instance that accepts links; `properties` are those of LLMConfig."""
    config = LLMConfig()
    config.enable_cache_manager = True
    config.listen_ip_info = f"{address(OWNER if cluster_id == OWNER_ID else LOCAL)}:0"
    config.sync_kv_timeout = _TIMEOUT_MS
    config.transfer_backend = backend
    config.max_registered_addrs = _MOST_ADDRESSES
    for name, value in properties.items():
        setattr(config, name, value)
    instance = LLMDataDist(LLMRole.PROMPT, cluster_id)
    instance.init(config.generate_options())
    return instance


def owner_info(listen_address: tuple[str, int]) -> LLMClusterInfo:
    """Return what links the owner."""
    info = LLMClusterInfo()
    info.remote_cluster_id = OWNER_ID
    info.append_local_ip_info(address(LOCAL), 0)
    info.append_remote_ip_info(*listen_address)
    return info


def desc_of(case: Case) -> CacheDesc:
    """Return the description of a cache that holds exactly the case."""
    return CacheDesc(case.tensors, [case.count, case.block_bytes], DataType.DT_UINT8)


def register(
    instance: LLMDataDist, memory: Memory, case: Case, key: BlocksCacheKey | None = None
) -> Cache:
    """Register the tensors of the case in this buffer."""
    first, each = work.address(memory), case.total_bytes // case.tensors
    addrs = [first + index * each for index in range(case.tensors)]
    return instance.cache_manager.register_blocks_cache(desc_of(case), addrs, key)


def owner(
    pipe: Connection, memory: Memory, *, backend: str, pool: bool, **properties: object
) -> None:
    """Body of the owner process. It has the cache of one case at a time."""
    if pool:
        pool_bytes = len(memory) + 4 * work.MIB
        properties["mem_pool_cfg"] = f'{{"memory_size": {pool_bytes}, "page_shift": 21}}'
    instance = start(OWNER_ID, backend, **properties)
    manager = instance.cache_manager
    caches: list[Cache] = []

    def register_case(case: Case) -> None:
        key = BlocksCacheKey(OWNER_ID)
        while caches:
            if pool:
                manager.deallocate_blocks_cache(caches.pop())
            else:
                manager.unregister_cache(caches.pop().cache_id)
        if not pool:
            caches.append(register(instance, memory, case, key))
            return
        cache = manager.allocate_blocks_cache(desc_of(case), key)
        caches.append(cache)
        each = case.total_bytes // case.tensors
        for index in range(case.tensors):
            part = memory[index * each : (index + 1) * each]
            np.copyto(cache.tensor(index).reshape(-1), part)

    pipe.send({"address": instance.listen_address})
    serve(pipe, memory, register=register_case)
    instance.finalize()


def _owner_registered(pipe: Connection, memory: Memory) -> None:
    owner(pipe, memory, backend="auto", pool=False)


def _owner_pool(pipe: Connection, memory: Memory) -> None:
    owner(pipe, memory, backend="auto", pool=True)


def _owner_tcp(pipe: Connection, memory: Memory) -> None:
    owner(pipe, memory, backend="tcp", pool=False)


class Datadist(Contender):
    """Transfers of registered memory over the path that the library chooses."""

    name = "llm-datadist"
    backend = "auto"
    checksum = "off"
    properties: ClassVar[dict[str, object]] = {}

    def __init__(self, local: Memory) -> None:
        super().__init__(local)
        properties: dict[str, object] = {"checksum": self.checksum} | self.properties
        self.instance: LLMDataDist = start(LOCAL_ID, self.backend, **properties)
        self._cache: Cache | None = None
        self._lists: tuple[list[int], list[int]] = ([], [])
        self.link()

    @staticmethod
    def owner_body() -> Callable[[Connection, Memory], None]:
        """Return the body of an owner of registered memory."""
        return _owner_registered

    def link(self) -> None:
        """Link the owner.

        Raises:
            RuntimeError: It cannot be linked.
        """
        info = owner_info(self.owner.hello["address"])
        status, each = self.instance.link_clusters([info], _LINK_MS)
        if status != LLMStatusCode.LLM_SUCCESS:
            raise RuntimeError(f"cannot link the owner: {status.name}, {each}")

    def unlink(self) -> None:
        """End the link to the owner."""
        self.instance.unlink_clusters([owner_info(self.owner.hello["address"])])

    def describe(self) -> dict[str, Any]:
        """Return the facts of the link."""
        return self.instance.describe_link(OWNER_ID)

    def prepare(self, case: Case) -> None:
        """Register the case at both ends."""
        self.owner.ask("register", case)
        if self._cache is not None:
            self.instance.cache_manager.unregister_cache(self._cache.cache_id)
        self._cache = register(self.instance, self.local, case)
        src, dst = case.blocks()
        self._lists = src.tolist(), dst.tolist()

    def read(self, case: Case) -> None:
        """Pull the case that was prepared."""
        self.pull(*self._lists)

    def pull(self, src: list[int], dst: list[int]) -> None:
        """Pull blocks of the case that was prepared. Several threads may call this at once."""
        manager = self.instance.cache_manager
        manager.pull_blocks(BlocksCacheKey(OWNER_ID), self._prepared(), src, dst)

    def write(self, case: Case) -> None:
        """Push the case that was prepared."""
        src, dst = self._lists
        self.instance.cache_manager.push_blocks(
            BlocksCacheKey(OWNER_ID), self._prepared(), src, dst
        )

    def close(self) -> None:
        """End the instance, and the owner process."""
        self.instance.finalize()
        super().close()

    def _prepared(self) -> Cache:
        if self._cache is None:
            raise RuntimeError("no case was prepared")
        return self._cache


class DatadistPool(Datadist):
    """Pulls from memory of the owner's pool."""

    name = "llm-datadist (pool)"

    @staticmethod
    def owner_body() -> Callable[[Connection, Memory], None]:
        """Return the body of an owner of a pool."""
        return _owner_pool


class DatadistTcp(Datadist):
    """Forced onto TCP lanes."""

    name = "llm-datadist (tcp)"
    backend = "tcp"

    @staticmethod
    def owner_body() -> Callable[[Connection, Memory], None]:
        """Return the body of an owner that is forced onto TCP lanes."""
        return _owner_tcp
