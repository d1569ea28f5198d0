"""What to give for an argument, added to the text of a TypeError."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["remedy_for"]

_CACHE: Final = "give the Cache that its registration has returned"
_JSON: Final = "give JSON text, such as that of json.dumps"
_LAYERS: Final = "give range(first, last + 1)"
_MILLISECONDS: Final = "give whole milliseconds"
_TEXT: Final = 'option values are text: give "1000" for 1000, "1" for True'

#: Name of the argument, or of the property of LLMConfig -> remedy.
_REMEDIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "addrs": "give tensor.data_ptr() or array.ctypes.data, or use register_tensors",
        "buf_pool_cfg": _JSON,
        "cache": _CACHE,
        "cache_id": "give cache.cache_id",
        "cache_keys": "give a list: [key] for one key",
        "cluster_id": "give the number of an instance; aio.cluster_id_of(name) makes one of a name",
        "clusters": "give a list: [info] for one LLMClusterInfo",
        "config": "make one with LLMConfig()",
        "data_type": "give a member of DataType, such as DataType.DT_FLOAT16",
        "dst_cache": _CACHE,
        "dst_layer_range": _LAYERS,
        "ge_options": _TEXT,
        "global_resource_config": _JSON,
        "host_mem_pool_cfg": _JSON,
        "layer_synchronizer": "give an object of a subclass of LayerSynchronizer",
        "listen": 'give text, "ip:port"',
        "listen_ip_info": 'give text, "ip:port"',
        "local_comm_res": _JSON,
        "mem_pool_cfg": _JSON,
        "nixl_params": _JSON,
        "options": "LLMConfig.generate_options() makes them",
        "peer": 'give the name of a node, or its "host:port"',
        "placement": "give Placement.DEVICE or Placement.HOST",
        "policy": "give FaultPolicy([rule, ...])",
        "rank_table": _JSON,
        "role": "give LLMRole.PROMPT, LLMRole.DECODER or LLMRole.MIX",
        "rules": "give a list: [rule] for one FaultRule",
        "src_cache": _CACHE,
        "src_layer_range": _LAYERS,
        "sync_kv_timeout": _MILLISECONDS,
        "tensors": "give a list: [tensor] for one tensor",
        "timeout": _MILLISECONDS,
        "transfer_configs": "give a list: [config] for one config",
        "ttl_ms": _MILLISECONDS,
    }
)


def remedy_for(name: str) -> str:
    """Return the remedy for an argument, "" if its type says all; `name` may have an index."""
    if name.startswith("option "):
        return _TEXT
    return _REMEDIES.get(name.partition("[")[0], "")
