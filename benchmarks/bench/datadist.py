"""Contenders that use llm-datadist through its public API only."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, ClassVar

from bench import work
from bench.contender import Contender, serve
from bench.hosts import LOCAL, OWNER, address

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import numpy as np

    from llm_datadist import Cache, LLMDataDist

OWNER_ID, LOCAL_ID = 1, 2
_TIMEOUT_MS = 60_000


def start(
    cluster_id: int, backend: str, *, pool_bytes: int = 0, **properties: object
) -> LLMDataDist:
    """An initialized instance that accepts links; the rest is set in LLMConfig."""
    from llm_datadist import LLMConfig, LLMDataDist, LLMRole  # noqa: PLC0415

    config = LLMConfig()
    config.enable_cache_manager = True
    config.listen_ip_info = f"{address(OWNER if cluster_id == OWNER_ID else LOCAL)}:0"
    config.sync_kv_timeout = _TIMEOUT_MS
    config.transfer_backend = backend
    if pool_bytes:
        config.mem_pool_cfg = f'{{"memory_size": {pool_bytes}, "page_shift": 21}}'
    for name, value in properties.items():
        setattr(config, name, value)
    instance = LLMDataDist(LLMRole.PROMPT, cluster_id)
    instance.init(config.generate_options())
    return instance


def register(
    instance: LLMDataDist,
    start_address: int,
    total: int,
    block_bytes: int,
    tensors: int = 1,
    *,
    key: bool = True,
) -> Cache:
    """Register the buffer as blocks of `tensors` tensors; the key names the block size."""
    from llm_datadist import BlocksCacheKey, CacheDesc, DataType  # noqa: PLC0415

    each = total // tensors
    desc = CacheDesc(tensors, [each // block_bytes, block_bytes], DataType.DT_UINT8)
    addrs = [start_address + index * each for index in range(tensors)]
    name = BlocksCacheKey(instance.cluster_id, model_id=block_bytes) if key else None
    return instance.cache_manager.register_blocks_cache(desc, addrs, name)


def owner(
    pipe: Connection, memory: np.ndarray, *, backend: str, pool: bool, **properties: object
) -> None:
    """Body of the owner process."""
    import numpy as np  # noqa: PLC0415

    from llm_datadist import BlocksCacheKey, CacheDesc, DataType  # noqa: PLC0415

    pool_bytes = len(memory) + (4 << 20) if pool else 0
    instance = start(OWNER_ID, backend, pool_bytes=pool_bytes, **properties)
    caches: list[Any] = []
    spin = threading.Event()

    def register_case(argument: tuple[int, int]) -> None:
        block_bytes, total = argument
        if not pool:
            caches.append(register(instance, work.address(memory), total, block_bytes))
            return
        while caches:
            instance.cache_manager.deallocate_blocks_cache(caches.pop())
        desc = CacheDesc(1, [total // block_bytes, block_bytes], DataType.DT_UINT8)
        cache = instance.cache_manager.allocate_blocks_cache(
            desc, BlocksCacheKey(OWNER_ID, model_id=block_bytes)
        )
        caches.append(cache)
        np.copyto(cache.tensor(0).reshape(-1), memory[:total])

    def busy(on: bool) -> None:
        if on:
            spin.clear()
            threading.Thread(target=_spin, args=(spin,), daemon=True).start()
        else:
            spin.set()

    pipe.send({"address": instance.listen_address})
    serve(pipe, memory, register=register_case, busy=busy)
    instance.finalize()


def _spin(stop: threading.Event) -> None:
    number = 0
    while not stop.is_set():
        for _ in range(10_000):
            number = (number * 3 + 1) & 0xFFFF


def owner_registered(pipe: Connection, memory: np.ndarray) -> None:
    owner(pipe, memory, backend="auto", pool=False)


def owner_pool(pipe: Connection, memory: np.ndarray) -> None:
    owner(pipe, memory, backend="auto", pool=True)


def owner_tcp(pipe: Connection, memory: np.ndarray) -> None:
    owner(pipe, memory, backend="tcp", pool=False)


class Datadist(Contender):
    """Transfers of registered memory over the path that the library chooses."""

    name = "llm-datadist"
    backend = "auto"
    checksum = "off"
    properties: ClassVar[dict[str, object]] = {}

    def __init__(self, local: np.ndarray) -> None:
        from llm_datadist import BlocksCacheKey, LLMClusterInfo, LLMStatusCode  # noqa: PLC0415

        super().__init__(local)
        self._key = BlocksCacheKey
        properties = {"checksum": self.checksum} | self.properties
        self.instance = start(LOCAL_ID, self.backend, **properties)
        self._caches: dict[int, Any] = {}
        self._lists: dict[str, tuple[list[int], list[int]]] = {}
        info = LLMClusterInfo()
        info.remote_cluster_id = OWNER_ID
        info.append_local_ip_info(address(LOCAL), 0)
        info.append_remote_ip_info(*self.owner.hello["address"])
        status, each = self.instance.link_clusters([info], 10_000)
        if status != LLMStatusCode.LLM_SUCCESS:
            raise RuntimeError(f"cannot link: {each}")

    @staticmethod
    def owner_body() -> Any:
        return owner_registered

    def describe(self) -> dict[str, object]:
        return self.instance.describe_link(OWNER_ID)

    def prepare(self, case: work.Case) -> None:
        self.owner.ask("register", (case.block_bytes, case.total_bytes))
        if case.block_bytes in self._caches:
            self.instance.cache_manager.unregister_cache(self._caches[case.block_bytes].cache_id)
        self._caches[case.block_bytes] = register(
            self.instance, work.address(self.local), case.total_bytes, case.block_bytes
        )
        src, dst = case.blocks()
        self._lists[case.name] = src.tolist(), dst.tolist()

    def read(self, case: work.Case) -> None:
        src, dst = self._lists[case.name]
        self.instance.cache_manager.pull_blocks(
            self._key(OWNER_ID, case.block_bytes), self._caches[case.block_bytes], src, dst
        )

    def write(self, case: work.Case) -> None:
        src, dst = self._lists[case.name]
        self.instance.cache_manager.push_blocks(
            self._key(OWNER_ID, case.block_bytes), self._caches[case.block_bytes], src, dst
        )

    def close(self) -> None:
        self.instance.finalize()
        super().close()


class DatadistPool(Datadist):
    """Pulls from memory of the owner's pool."""

    name = "llm-datadist (pool)"

    @staticmethod
    def owner_body() -> Any:
        return owner_pool


class DatadistTcp(Datadist):
    """Forced onto TCP lanes."""

    name = "llm-datadist (tcp)"
    backend = "tcp"

    @staticmethod
    def owner_body() -> Any:
        return owner_tcp
