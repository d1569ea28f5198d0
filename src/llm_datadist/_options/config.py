"""`LLMConfig`: options as properties, for callers.

Source: api.md 3.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar, Final

from llm_datadist._options import keys
from llm_datadist._options.nearest import nearest_name
from llm_datadist._options.properties import (
    Bool,
    DeviceIds,
    Int,
    Milliseconds,
    Property,
    Str,
    Utilization,
)
from llm_datadist._types.checks import INT64_MAX, check_str, wrong_type
from llm_datadist._types.named_calls import names_call

__all__ = ["LLMConfig"]

_HIDDEN: Final = "***"


class LLMConfig:
    """Options of an instance; `generate_options` makes the dictionary for `LLMDataDist.init`.

    Every property is None until it is set, and then left out of the dictionary. Setting one raises
    TypeError for a wrong type and ValueError for an integer out of range; setting an attribute that
    is no option raises AttributeError. `init` detects all other errors, such as invalid JSON.

    Source: api.md 3.
    """

    _properties: ClassVar[dict[str, Property[Any]]]

    @DeviceIds(keys.DEVICE_ID, keys.SESSION_DEVICE_ID)
    def device_id(self) -> int | list[int] | tuple[int, ...] | None:
        """Device, or list or tuple of devices, each in [0, 2**31-1]. Unset: device 0."""

    @Milliseconds(keys.SYNC_KV_TIMEOUT)
    def sync_kv_timeout(self) -> int | str | None:
        """Deadline of a transfer in ms, int or decimal str, in [1, 2**32-1]. Unset: 1000."""

    @Str(keys.LISTEN)
    def listen_ip_info(self) -> str | None:
        """Where to accept links, `ip:port` or `[v6]:port`; port 0 chooses one. In
        first-generation mode several, separated by semicolons. Unset: client only.
        """

    @Bool(keys.ENABLE_CACHE_MANAGER)
    def enable_cache_manager(self) -> bool | None:
        """Use the cache manager. Unset: off."""

    @Bool(keys.ENABLE_REMOTE_CACHE_ACCESSIBLE)
    def enable_remote_cache_accessible(self) -> bool | None:
        """Keep peers' cache directories, transfer layer by layer by key. Unset: off (on with
        local_comm_res).
        """

    @Str(keys.MEM_POOL)
    def mem_pool_cfg(self) -> str | None:
        """Device pool, a JSON object: memory_size in bytes > 0; page_shift in [10, 31), 16 if left
        out. Memory of GPU device_id if device is "cuda", else of the host. Unset: no device pool.
        """

    @Str(keys.HOST_MEM_POOL)
    def host_mem_pool_cfg(self) -> str | None:
        """Host pool, as mem_pool_cfg; pinned for GPUs if device is "cuda". Unset: no host pool."""

    @Str(keys.LOCAL_COMM_RES)
    def local_comm_res(self) -> str | None:
        """NPU network resources, a JSON object, or "". Set (to "" as well) it selects the cache
        manager.
        """

    @Int(keys.LINK_TOTAL_TIME)
    def link_total_time(self) -> int | None:
        """Time limit of setting up a domain in s, in [0, 2**32-1]. Unset or 0: environment variable
        HCCL_CONNECT_TIMEOUT, else 120.
        """

    @Int(keys.LINK_RETRY_COUNT, low=1, high=100)
    def link_retry_count(self) -> int | None:
        """Attempts to set up a domain, in [1, 100]. Unset: 1."""

    @Int(keys.RDMA_TRAFFIC_CLASS, low=-math.inf, high=math.inf)
    def rdma_traffic_class(self) -> int | None:
        """RDMA traffic class; a multiple of 4 in [0, 255] is advised. Unset: environment variable
        HCCL_RDMA_TC, else 132.
        """

    @Int(keys.RDMA_SERVICE_LEVEL, low=-math.inf, high=math.inf)
    def rdma_service_level(self) -> int | None:
        """RDMA service level; [0, 7] is advised. Unset: environment variable HCCL_RDMA_SL, else
        4.
        """

    @Str(keys.TRANSFER_BACKEND)
    def transfer_backend(self) -> str | None:
        """Data path: "auto", "host", "tcp", "nixl", or "hixl" (the same as auto). Unset: auto."""

    @Str(keys.GLOBAL_RESOURCE_CONFIG)
    def global_resource_config(self) -> str | None:
        """NPU resources, a JSON object, or ""; looked at only with transfer_backend "hixl"."""

    @Bool(keys.ENABLE_SWITCH_ROLE)
    def enable_switch_role(self) -> bool | None:
        """Allow switch_role; the cache manager always does. Unset: off."""

    @Utilization(keys.MEM_UTILIZATION)
    def mem_utilization(self) -> float | None:
        """Fraction of ge.flowGraphMemMaxSize that the first generation's pool has, in [0, 1], else
        LLMException. Unset: 0.95.
        """

    @Str(keys.BUF_POOL)
    def buf_pool_cfg(self) -> str | None:
        """First generation's buffer pools, a JSON object; checked and ignored."""

    @Str(keys.CLUSTER_INFO)
    def cluster_info(self) -> str | None:
        """Accepted and ignored."""

    @Str(keys.RESOURCE_PATH)
    def deploy_res_path(self) -> str | None:
        """Accepted and ignored."""

    @Str(keys.OUTPUT_MAX_SIZE)
    def output_max_size(self) -> str | None:
        """Accepted and ignored."""

    @Int(keys.MAX_REGISTERED_ADDRS, low=1, high=INT64_MAX)
    def max_registered_addrs(self) -> int | None:
        """Addresses that all registered caches may have together, at least 1 *(extension)*. Unset:
        240.
        """

    @Int(keys.LINK_BASE_PORT, low=1024, high=65000)
    def link_base_port(self) -> int | None:
        """First port of the listeners of domains, in [1024, 65000] *(extension)*. Unset:
        environment variable HCCL_IF_BASE_PORT, else 60000.
        """

    @Str(keys.LINK_SECRET)
    def link_secret(self) -> str | None:
        """Secret that both ends of a link must share *(extension)*; never printed. Unset:
        environment variable LLM_DATADIST_SECRET, or the contents of the file that
        LLM_DATADIST_SECRET_FILE names, else none.
        """

    @Str(keys.TLS_CERT)
    def tls_cert(self) -> str | None:
        """PEM file with this instance's certificate, for clients and servers alike, and its chain
        up to the authority *(extension)*. Set with tls_key and tls_ca it puts links under mutual
        TLS. Unset, all three: environment variables LLM_DATADIST_TLS_CERT, LLM_DATADIST_TLS_KEY and
        LLM_DATADIST_TLS_CA, else no TLS.
        """

    @Str(keys.TLS_KEY)
    def tls_key(self) -> str | None:
        """PEM file with the private key of tls_cert, not encrypted *(extension)*. Unset: as
        tls_cert.
        """

    @Str(keys.TLS_CA)
    def tls_ca(self) -> str | None:
        """PEM file with the authorities one of which must have issued a peer's certificate
        *(extension)*. Unset: as tls_cert.
        """

    @Bool(keys.TLS_LANES)
    def tls_lanes(self) -> bool | None:
        """Encrypt the bytes of lanes, too, which then pass through Python threads and are slower;
        needs tls_cert *(extension)*. Unset: off.
        """

    @Bool(keys.ALLOW_ANONYMOUS)
    def allow_anonymous(self) -> bool | None:
        """Whether to listen without a secret and without TLS, so that every process that can
        connect may link *(extension)*. True: no warning. False: refused. Unset: a warning when
        processes of other users can connect.
        """

    @Str(keys.DEVICE)
    def device(self) -> str | None:
        """Where device memory is: "auto" (a GPU's where the addresses are, else the host's), "cpu"
        (the host's), "cuda" (needs a GPU, whose memory then moves between processes of this host,
        and with NIXL or over lanes to other hosts) *(extension)*. Unset: auto.
        """

    @Str(keys.GPU_COPY)
    def gpu_copy(self) -> str | None:
        """How memory of GPUs is copied: "kernel" (one launch for many blocks, where a kernel
        reaches both sides), "engine" (the GPU's copy engines), "auto" (kernel for blocks below
        1 MiB) *(extension)*. Unset: auto.
        """

    @Int(keys.TRANSFER_THREADS, low=1, high=256)
    def transfer_threads(self) -> int | None:
        """Threads that move bytes, in [1, 256] *(extension)*. Unset: by the number of cores."""

    @Int(keys.LANES_PER_LINK, low=1, high=64)
    def lanes_per_link(self) -> int | None:
        """Most data connections of a link in each direction, in [1, 64] *(extension)*. Unset: 4. A
        link starts with 2; the others are opened when a transfer could use them.
        """

    @Int(keys.HEARTBEAT, high=3600000)
    def heartbeat_ms(self) -> int | None:
        """How often to see whether an idle link is alive, in ms, in [0, 3600000], 0 for never
        *(extension)*. Unset: 1000, or half of peer_timeout_ms when that is less.
        """

    @Int(keys.PEER_TIMEOUT, low=100, high=86400000)
    def peer_timeout_ms(self) -> int | None:
        """How long a peer may be silent before its link is dropped as a dead peer's, in ms, in
        [100, 86400000], at least twice heartbeat_ms; without heartbeats silence is not noticed
        *(extension)*. Unset: 10000, or twice heartbeat_ms when that is more.
        """

    @Bool(keys.AUTO_RELINK)
    def auto_relink(self) -> bool | None:
        """Whether links that link_clusters of this instance made, and that are then lost, are made
        again in the background as soon as the peer is back *(extension)*. Unset: on.
        """

    @Int(keys.SLOW_TRANSFER, low=1)
    def slow_transfer_ms(self) -> int | None:
        """Log a warning for each transfer of this instance that takes longer, in ms, in
        [1, 2**32-1] *(extension)*. Unset: off.
        """

    @Str(keys.CHECKSUM)
    def checksum(self) -> str | None:
        """How the transfers that this instance makes are checked end to end: "off", "crc32c"
        *(extension)*. Unset: off.
        """

    @Str(keys.HUGE_PAGES)
    def huge_pages(self) -> str | None:
        """Whether registered host memory is to consist of huge pages, which transfers on the same
        host read with less processor time: "off", "advise" (as the kernel gets to it), "collapse"
        (during the registration) *(extension)*. Unset: off.
        """

    @Str(keys.NIXL_BACKEND)
    def nixl_backend(self) -> str | None:
        """Engine of NIXL, "UCX" or "LIBFABRIC" *(extension)*. Unset: UCX."""

    @Str(keys.NIXL_PARAMS)
    def nixl_params(self) -> str | None:
        """Parameters of NIXL's engine, a JSON object of text, numbers and switches *(extension)*.
        Unset: for UCX as many workers as cores, up to 4.
        """

    @Bool(keys.STRICT_BACKEND)
    def strict_backend(self) -> bool | None:
        """Fail a link with LLM_LINK_FAILED when it cannot use the accelerated path that both hosts
        have, instead of logging a warning *(extension)*. Unset: off.
        """

    def __init__(self) -> None:
        self._ge_options: dict[str, str] = {}

    @partial(names_call, name="LLMConfig")
    def __setattr__(self, name: str, value: object) -> None:
        """Set an option; refuse a name that is none, such as a misspelled one.

        Raises:
            TypeError, ValueError: The value is none that the option may have.
            AttributeError: There is no option of that name; the text has the nearest one.
        """
        if not (name.startswith("_") or hasattr(type(self), name)):
            nearest = nearest_name(name, [*self._properties, "ge_options"])
            raise AttributeError(
                f"LLMConfig has no option {name!r}"
                + (f", did you mean {nearest!r}?" if nearest else "")
                + " (ge_options takes keys of any name)",
                name=name,
                obj=self,
            )
        super().__setattr__(name, value)

    @property
    def ge_options(self) -> dict[str, str]:
        """Further options, which override the others; the dictionary may be changed in place."""
        return self._ge_options

    @ge_options.setter
    def ge_options(self, value: dict[str, str]) -> None:
        self._ge_options = _check_options(value)

    def generate_options(self) -> dict[str, str]:
        """Return a new option dictionary with what was set.

        Raises:
            TypeError: ge_options holds something other than str.
        """
        options: dict[str, str] = {}
        for name, item in self._properties.items():
            if name in vars(self):
                options.update(item.options(vars(self)[name]))
        options.update(_check_options(self._ge_options))
        return options

    def gen_options(self) -> dict[str, str]:
        """Return the same as `generate_options`."""
        return self.generate_options()

    def __repr__(self) -> str:
        shown = {name: vars(self)[name] for name in self._properties if name in vars(self)}
        if "link_secret" in shown:
            shown["link_secret"] = _HIDDEN
        if self._ge_options:
            shown["ge_options"] = {
                key: _HIDDEN if key == keys.LINK_SECRET else value
                for key, value in self._ge_options.items()
            }
        return f"LLMConfig({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


LLMConfig._properties = {
    name: item for name, item in vars(LLMConfig).items() if isinstance(item, Property)
}


def _check_options(options: dict[str, str]) -> dict[str, str]:
    """Return `options` itself; raise TypeError unless it is a dict of str to str."""
    if not isinstance(options, dict):
        raise wrong_type("ge_options", options, "dict of str to str")
    for key, value in options.items():
        check_str("a key of ge_options", key)
        check_str(f"ge_options[{key!r}]", value)
    return options
