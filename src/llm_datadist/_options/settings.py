"""`Config`: the parsed and complete options of an instance.

Source: api.md 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias, final

from llm_datadist._errors import FIRST_GENERATION_STATUSES

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from llm_datadist._errors import LLMStatusCode

__all__ = [
    "Backend",
    "Checksum",
    "Config",
    "Device",
    "GpuCopy",
    "HugePages",
    "NixlEngine",
    "Pool",
    "Tls",
]

Backend: TypeAlias = Literal["auto", "host", "tcp", "nixl"]
Device: TypeAlias = Literal["auto", "cpu", "cuda"]
GpuCopy: TypeAlias = Literal["auto", "kernel", "engine"]
Checksum: TypeAlias = Literal["off", "crc32c"]
HugePages: TypeAlias = Literal["off", "advise", "collapse"]
NixlEngine: TypeAlias = Literal["UCX", "LIBFABRIC"]


@final
@dataclass(frozen=True, slots=True)
class Pool:
    """A memory pool.

    Attributes:
        memory_size: Bytes.
        page_shift: Binary logarithm of the page size in bytes.
    """

    memory_size: int
    page_shift: int = 16


@final
@dataclass(frozen=True, slots=True)
class Tls:
    """Mutual TLS contexts: own certificate and key, and the authorities of peers' certificates.

    Attributes:
        dialing: For connections that this instance opens.
        accepting: For incoming connections.
        lanes: Whether this end requires lanes to use TLS as well.
    """

    dialing: ssl.SSLContext
    accepting: ssl.SSLContext
    lanes: bool = False


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All options of an instance, with defaults filled in.

    Attributes:
        device_ids: One or more devices.
        sync_timeout_ms: Deadline of a transfer.
        listen: Where to accept links, port 0 to choose one; None for a client.
        cache_manager: Whether the cache manager is selected; False is the first generation.
        remote_accessible: Whether peers' directories are kept.
        device_pool: Pool for Placement.DEVICE.
        host_pool: Pool for Placement.HOST.
        local_comm_res: As given; None if absent, which differs from "".
        link_total_time_s: Time limit of setting up a domain.
        link_retry_count: Attempts to set up a domain.
        rdma_traffic_class: For RDMA data paths.
        rdma_service_level: For RDMA data paths.
        backend: Data path.
        is_hixl: Whether the backend was given as "hixl", which means auto with a fixed port.
        global_resource_config: As given; None if absent.
        switch_role: Whether enable_switch_role was on.
        max_registered_addrs: Addresses that all registered caches may have together.
        link_base_port: First port of the listeners of domains.
        secret: Shared secret; None for none.
        tls: Mutual TLS; None for none.
        allow_anonymous: Whether to listen without secret and TLS; None to warn then.
        device: Where device memory is.
        gpu_copy: How memory of GPUs is copied.
        transfer_threads: Threads that move bytes; None for a number that depends on the cores.
        lanes_per_link: Data connections that a link may have in each direction.
        heartbeat_ms: Interval of the checks of idle links; 0 for none.
        peer_timeout_ms: How long a peer may be silent; at least twice heartbeat_ms.
        auto_relink: Whether lost links that link_clusters made are re-established.
        slow_transfer_ms: Duration above which a transfer is logged; None for never.
        checksum: How transfers that this instance makes are checked.
        huge_pages: Whether the kernel is asked for huge pages in registered host memory.
        nixl_backend: Engine that NIXL uses.
        nixl_params: Parameters of that engine.
        strict_backend: Whether a link fails that cannot use the accelerated path of both hosts.
        shared_pool: The first generation's pool, for both placements.
        more_listen: Further addresses of a first-generation instance to accept links at.
    """

    device_ids: tuple[int, ...] = (0,)
    sync_timeout_ms: int = 1000
    listen: tuple[str, int] | None = None
    cache_manager: bool = True
    remote_accessible: bool = False
    device_pool: Pool | None = None
    host_pool: Pool | None = None
    local_comm_res: str | None = None
    link_total_time_s: int = 120
    link_retry_count: int = 1
    rdma_traffic_class: int = 132
    rdma_service_level: int = 4
    backend: Backend = "auto"
    is_hixl: bool = False
    global_resource_config: str | None = None
    switch_role: bool = False
    max_registered_addrs: int = 240
    link_base_port: int = 60000
    secret: bytes | None = field(default=None, repr=False)
    tls: Tls | None = field(default=None, repr=False)
    allow_anonymous: bool | None = None
    device: Device = "auto"
    gpu_copy: GpuCopy = "auto"
    transfer_threads: int | None = None
    lanes_per_link: int = 4
    heartbeat_ms: int = 1000
    peer_timeout_ms: int = 10_000
    auto_relink: bool = True
    slow_transfer_ms: int | None = None
    checksum: Checksum = "off"
    huge_pages: HugePages = "off"
    nixl_backend: NixlEngine = "UCX"
    nixl_params: Mapping[str, str] = field(default_factory=dict)
    strict_backend: bool = False
    shared_pool: Pool | None = None
    more_listen: tuple[tuple[str, int], ...] = ()

    @property
    def local_comm_res_given(self) -> bool:
        """Whether local_comm_res was set, including to ""."""
        return self.local_comm_res is not None

    @property
    def statuses(self) -> Mapping[LLMStatusCode, LLMStatusCode]:
        """Statuses that this generation of the API has in place of others."""
        return {} if self.cache_manager else FIRST_GENERATION_STATUSES
