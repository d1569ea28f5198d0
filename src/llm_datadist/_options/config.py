"""`LLMConfig`: options as properties, for callers.

Source: api.md 3.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Final

from llm_datadist._options import keys
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

__all__ = ["LLMConfig"]

_HIDDEN: Final = "***"


class LLMConfig:
    """Options of an instance; `generate_options` makes the dictionary for `LLMDataDist.init`.

    Every property is None until it is set, and then left out of the dictionary. Setting one raises
    TypeError for a wrong type and ValueError for an integer out of range. `init` detects all other
    errors, such as invalid JSON.

    Source: api.md 3.
    """

    _properties: ClassVar[dict[str, Property[Any]]]

    device_id = DeviceIds(
        keys.DEVICE_ID,
        keys.SESSION_DEVICE_ID,
        "Device, or list or tuple of devices, each in [0, 2**31-1]. Unset: device 0.",
    )
    sync_kv_timeout = Milliseconds(
        keys.SYNC_KV_TIMEOUT,
        "Deadline of a transfer in ms, int or decimal str, in [1, 2**32-1]. Unset: 1000.",
    )
    listen_ip_info = Str(
        keys.LISTEN,
        "Where to accept links, `ip:port` or `[v6]:port`; port 0 chooses one. Unset: client only.",
    )
    enable_cache_manager = Bool(keys.ENABLE_CACHE_MANAGER, "Use the cache manager. Unset: off.")
    enable_remote_cache_accessible = Bool(
        keys.ENABLE_REMOTE_CACHE_ACCESSIBLE,
        "Keep peers' cache directories, transfer layer by layer by key. "
        "Unset: off (on with local_comm_res).",
    )
    mem_pool_cfg = Str(
        keys.MEM_POOL,
        "Device pool, a JSON object: memory_size in bytes > 0; page_shift in [10, 31), 16 if left "
        "out. Unset: no device pool.",
    )
    host_mem_pool_cfg = Str(keys.HOST_MEM_POOL, "Host pool, as mem_pool_cfg. Unset: no host pool.")
    local_comm_res = Str(
        keys.LOCAL_COMM_RES,
        'NPU network resources, a JSON object, or "". Set (to "" as well) it selects the cache '
        "manager.",
    )
    link_total_time = Int(
        keys.LINK_TOTAL_TIME,
        "Time limit of setting up a domain in s, in [0, 2**32-1]. "
        "Unset or 0: environment variable HCCL_CONNECT_TIMEOUT, else 120.",
    )
    link_retry_count = Int(
        keys.LINK_RETRY_COUNT,
        "Attempts to set up a domain, in [1, 100]. Unset: 1.",
        low=1,
        high=100,
    )
    rdma_traffic_class = Int(
        keys.RDMA_TRAFFIC_CLASS,
        "RDMA traffic class; a multiple of 4 in [0, 255] is advised. "
        "Unset: environment variable HCCL_RDMA_TC, else 132.",
        low=-math.inf,
        high=math.inf,
    )
    rdma_service_level = Int(
        keys.RDMA_SERVICE_LEVEL,
        "RDMA service level; [0, 7] is advised. Unset: environment variable HCCL_RDMA_SL, else 4.",
        low=-math.inf,
        high=math.inf,
    )
    transfer_backend = Str(
        keys.TRANSFER_BACKEND,
        'Data path: "auto", "host", "tcp", "nixl", or "hixl" (the same as auto). Unset: auto.',
    )
    global_resource_config = Str(
        keys.GLOBAL_RESOURCE_CONFIG,
        'NPU resources, a JSON object, or ""; looked at only with transfer_backend "hixl".',
    )
    enable_switch_role = Bool(
        keys.ENABLE_SWITCH_ROLE, "Allow switch_role; the cache manager always does. Unset: off."
    )
    mem_utilization = Utilization(
        keys.MEM_UTILIZATION,
        "Fraction of the memory that the first generation's pool may use, in [0, 1], else "
        "LLMException. Unset: 0.95.",
    )
    buf_pool_cfg = Str(keys.BUF_POOL, "First generation's buffer pools, JSON.")
    cluster_info = Str(keys.CLUSTER_INFO, "Accepted and ignored.")
    deploy_res_path = Str(keys.RESOURCE_PATH, "Accepted and ignored.")
    output_max_size = Str(keys.OUTPUT_MAX_SIZE, "Accepted and ignored.")
    max_registered_addrs = Int(
        keys.MAX_REGISTERED_ADDRS,
        "Addresses that all registered caches may have together, at least 1 *(extension)*. "
        "Unset: 240.",
        low=1,
        high=INT64_MAX,
    )
    link_base_port = Int(
        keys.LINK_BASE_PORT,
        "First port of the listeners of domains, in [1024, 65000] *(extension)*. "
        "Unset: environment variable HCCL_IF_BASE_PORT, else 60000.",
        low=1024,
        high=65000,
    )
    link_secret = Str(
        keys.LINK_SECRET,
        "Secret that both ends of a link must share *(extension)*; never printed. Unset: "
        "environment variable LLM_DATADIST_SECRET, or the contents of the file that "
        "LLM_DATADIST_SECRET_FILE names, else none.",
    )
    tls_cert = Str(
        keys.TLS_CERT,
        "PEM file with this instance's certificate, for clients and servers alike, and its chain "
        "up to the authority *(extension)*. Set with tls_key and tls_ca it puts links under mutual "
        "TLS. Unset: no TLS.",
    )
    tls_key = Str(
        keys.TLS_KEY,
        "PEM file with the private key of tls_cert, not encrypted *(extension)*. Unset: no TLS.",
    )
    tls_ca = Str(
        keys.TLS_CA,
        "PEM file with the authorities one of which must have issued a peer's certificate "
        "*(extension)*. Unset: no TLS.",
    )
    tls_lanes = Bool(
        keys.TLS_LANES,
        "Encrypt the bytes of lanes, too, which then pass through Python threads and are slower; "
        "needs tls_cert *(extension)*. Unset: off.",
    )
    allow_anonymous = Bool(
        keys.ALLOW_ANONYMOUS,
        "Whether to listen without a secret and without TLS, so that every process that can "
        "connect may link *(extension)*. True: no warning. False: refused. Unset: a warning when "
        "processes of other users can connect.",
    )
    device = Str(
        keys.DEVICE,
        "Where device memory is: \"auto\" (a GPU's where the addresses are, else the host's), "
        '"cpu" (the host\'s), "cuda" (needs a GPU, and NIXL, which moves its memory) '
        "*(extension)*. Unset: auto.",
    )
    transfer_threads = Int(
        keys.TRANSFER_THREADS,
        "Threads that move bytes, in [1, 256] *(extension)*. Unset: by the number of cores.",
        low=1,
        high=256,
    )
    lanes_per_link = Int(
        keys.LANES_PER_LINK,
        "Data connections of a link in each direction, in [1, 64] *(extension)*. Unset: 4.",
        low=1,
        high=64,
    )

    heartbeat_ms = Int(
        keys.HEARTBEAT,
        "How often to see whether an idle link is alive, in ms, in [0, 3600000], 0 for never "
        "*(extension)*. Unset: 1000, or half of peer_timeout_ms when that is less.",
        high=3_600_000,
    )
    peer_timeout_ms = Int(
        keys.PEER_TIMEOUT,
        "How long a peer may be silent before its link is dropped as a dead peer's, in ms, in "
        "[100, 86400000], at least twice heartbeat_ms; without heartbeats silence is not noticed "
        "*(extension)*. Unset: 10000, or twice heartbeat_ms when that is more.",
        low=100,
        high=86_400_000,
    )
    auto_relink = Bool(
        keys.AUTO_RELINK,
        "Whether links that link_clusters of this instance made, and that are then lost, are made "
        "again in the background as soon as the peer is back *(extension)*. Unset: on.",
    )
    checksum = Str(
        keys.CHECKSUM,
        'How the transfers that this instance makes are checked end to end: "off", "crc32c" '
        "*(extension)*. Unset: off.",
    )

    nixl_backend = Str(
        keys.NIXL_BACKEND,
        'Engine of NIXL, "UCX" or "LIBFABRIC" *(extension)*. Unset: UCX.',
    )
    nixl_params = Str(
        keys.NIXL_PARAMS,
        "Parameters of NIXL's engine, a JSON object of text, numbers and switches *(extension)*. "
        "Unset: for UCX as many workers as cores, up to 4.",
    )
    strict_backend = Bool(
        keys.STRICT_BACKEND,
        "Fail a link with LLM_LINK_FAILED when it cannot use the accelerated path that both hosts "
        "have, instead of logging a warning *(extension)*. Unset: off.",
    )

    def __init__(self) -> None:
        self._ge_options: dict[str, str] = {}

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
