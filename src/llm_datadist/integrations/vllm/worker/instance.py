"""`LLMDataDist` instance of one vLLM worker, with the worker's KV memory as caches."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    DataType,
    LLMConfig,
    LLMDataDist,
    LLMException,
    LLMRole,
)
from llm_datadist.integrations.vllm.worker.compatibility import (
    FACTS_BYTES,
    FACTS_MODEL_ID,
    write_facts,
)

if TYPE_CHECKING:
    from llm_datadist import Cache, CacheManager
    from llm_datadist.integrations.vllm.kv_layout import KVLayout, Part
    from llm_datadist.integrations.vllm.options import ConnectorOptions
    from llm_datadist.integrations.vllm.rank_layouts import RankLayouts

_NO_LIMIT = 2**31 - 1


class WorkerInstance:
    """One worker's instance, which all its transfers use. Thread-safe.

    Args:
        options: The connector's options.
        layout: The worker's KV memory, which vLLM must keep until `close`.
        rank_layouts: What of it belongs to which token and head.
        facts: The worker's compatibility facts, which peers pull.
        listens: Whether to accept links, as a producer must.

    Raises:
        LLMException: The listen address is in use, or not of this host.
    """

    def __init__(
        self,
        options: ConnectorOptions,
        layout: KVLayout,
        rank_layouts: RankLayouts,
        facts: dict[str, str],
        *,
        listens: bool,
    ) -> None:
        self.options = options
        self.layout = layout
        self.rank_layouts = rank_layouts
        self.facts = facts
        self.cluster_id: int = secrets.randbits(63)
        self._instance = LLMDataDist(LLMRole.MIX, self.cluster_id)
        self._instance.init(_llm_options(options, layout.rank, listens=listens))
        self._page = np.frombuffer(write_facts(facts), np.uint8).copy()
        try:
            self.cache_manager.register_blocks_cache(
                CacheDesc(1, [1, FACTS_BYTES], DataType.DT_UINT8),
                [self._page.ctypes.data],
                BlocksCacheKey(self.cluster_id, FACTS_MODEL_ID),
                remote_accessible=True,
            )
            self.local_caches: list[Cache] = [
                self._register(index, remote_accessible=False) for index in range(len(layout.parts))
            ]
        except BaseException:
            self._instance.finalize()
            raise

    @property
    def instance(self) -> LLMDataDist:
        """The instance, for links."""
        return self._instance

    @property
    def cache_manager(self) -> CacheManager:
        """The instance's cache calls."""
        return self._instance.cache_manager

    @property
    def listen_address(self) -> tuple[str, int] | None:
        """Address (ip, port) on which this worker accepts links; None if it does not."""
        return self._instance.listen_address

    def path_to(self, cluster_id: int) -> str:
        """Return the data path to a peer, or "none" without a link."""
        try:
            backend: Any = self._instance.describe_link(cluster_id)["backend"]
        except LLMException:
            return "none"
        return str(backend["host"])

    def publish(self, key: int) -> list[Cache]:
        """Publish all KV memory under `key`, part i under `key + i`, until `withdraw`.

        Peers that know the key can lease, read and write it. A pull that returns has read the bytes
        while the key was published.
        """
        return [
            self._register(index, BlocksCacheKey(self.cluster_id, key + index))
            for index in range(len(self.layout.parts))
        ]

    def withdraw(self, caches: list[Cache]) -> None:
        """Withdraw what `publish` returned; afterwards no transfer of these caches can succeed."""
        for cache in caches:
            self.cache_manager.unregister_cache(cache.cache_id)

    def close(self) -> None:
        """End links, threads and listener."""
        self._instance.finalize()

    def _register(
        self, index: int, key: BlocksCacheKey | None = None, *, remote_accessible: bool = True
    ) -> Cache:
        part, layouts = self.layout.parts[index], self.rank_layouts.parts
        return self.cache_manager.register_blocks_cache(
            desc_of(part),
            list(part.addrs),
            key,
            remote_accessible,
            layout=layouts[index] if layouts else None,
        )


def desc_of(part: Part) -> CacheDesc:
    """Describe a part as blocks of opaque bytes."""
    return CacheDesc(len(part.addrs), [part.num_blocks, part.block_bytes], DataType.DT_UINT8)


def _llm_options(options: ConnectorOptions, rank: int, *, listens: bool) -> dict[str, str]:
    config = LLMConfig()
    config.enable_cache_manager = True
    config.enable_remote_cache_accessible = True
    config.local_comm_res = ""  # links then need no local address
    config.auto_relink = False  # a producer that restarts has another id
    config.sync_kv_timeout = options.transfer_timeout_ms
    config.transfer_backend = options.transfer_backend
    config.checksum = options.checksum
    config.max_registered_addrs = _NO_LIMIT
    if options.secret is not None:
        config.link_secret = options.secret
    if listens:
        config.listen_ip_info = options.listen_address(rank)
    return config.generate_options()
