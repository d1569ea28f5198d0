"""A stand-in for the modules of vLLM that the connector imports: its interface, without an engine.

The classes declare what vLLM's classes of the same names have, as far as the connector needs it;
`METHODS` has the parameters with which vLLM calls a connector.
"""

from __future__ import annotations

import contextlib
import enum
import importlib
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

VERSIONS = ("0.32.0", "0.33.0")

METHODS = {
    "build_connector_meta": ("scheduler_output",),
    "get_block_ids_with_load_errors": (),
    "get_finished": ("finished_req_ids",),
    "get_handshake_metadata": (),
    "get_kv_connector_stats": (),
    "get_loaded_kv_cache_group_ids": ("request",),
    "get_num_new_matched_tokens": ("request", "num_computed_tokens"),
    "get_transfer_results": ("finished_req_ids",),
    "on_new_request": ("request",),
    "register_kv_caches": ("kv_caches",),
    "request_finished": ("request", "block_ids"),
    "request_finished_all_groups": ("request", "block_ids"),
    "requires_piecewise_for_cudagraph": ("extra_config",),
    "save_kv_layer": ("layer_name", "kv_layer", "attn_metadata"),
    "set_xfer_handshake_metadata": ("metadata",),
    "set_xfer_handshake_metadata_pp_aware": ("metadata",),
    "shutdown": (),
    "start_load_kv": ("forward_context",),
    "update_connector_output": ("connector_output",),
    "update_state_after_alloc": ("request", "blocks", "num_external_tokens"),
    "wait_for_layer_load": ("layer_name",),
    "wait_for_save": (),
}
"""Methods of a connector that vLLM 0.32 calls, and their parameters."""

SLEEP_METHODS = {
    "restore_kv_caches": (),
    "supports_sleep_mode": ("kv_transfer_config",),
    "unregister_kv_caches": (),
}
"""Those that only vLLM 0.33 calls."""


class KVConnectorRole(enum.Enum):
    """Process of a connector."""

    SCHEDULER = 0
    WORKER = 1


class KVConnectorMetadata:
    """From the scheduler side to the workers."""


class KVConnectorHandshakeMetadata:
    """From a worker to the scheduler side."""


class SupportsHMA:
    """Several KV cache groups."""


@dataclass
class KVConnectorTransferResults:
    """Ended transfers."""

    finished_sending: set[str] = field(default_factory=set)
    finished_recving: set[str] = field(default_factory=set)
    failed_recving: set[str] = field(default_factory=set)


class KVConnectorBase_V1:
    """What every connector has."""

    def __init__(self, vllm_config, role, kv_cache_config):
        self._vllm_config, self._kv_cache_config = vllm_config, kv_cache_config
        self.role = role
        self._metadata = None

    def bind_connector_metadata(self, connector_metadata):
        self._metadata = connector_metadata

    def clear_connector_metadata(self):
        self._metadata = None

    def has_connector_metadata(self):
        return self._metadata is not None

    def _get_connector_metadata(self):
        return self._metadata

    def get_transfer_results(self, finished_req_ids):
        sent, loaded = self.get_finished(finished_req_ids)
        return KVConnectorTransferResults(set(sent or ()), set(loaded or ()))


_BASE = (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)
_CONNECTOR = "llm_datadist.integrations.vllm.connector"


@contextlib.contextmanager
def installed(version):
    """While this lasts, the connector's class over the interface of a version of vLLM."""
    parts = ["vllm", "distributed", "kv_transfer", "kv_connector", "v1", "base"]
    names = [".".join(parts[: end + 1]) for end in range(len(parts))]
    before = {name: sys.modules.pop(name, None) for name in (*names, _CONNECTOR)}
    sys.modules.update({name: ModuleType(name) for name in names})
    sys.modules["vllm"].__version__ = version
    for each in _BASE:
        setattr(sys.modules[names[-1]], each.__name__, each)
    try:
        yield importlib.import_module(_CONNECTOR).LLMDataDistConnector
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


def transfer_config(role, **extra):
    """KVTransferConfig of an engine."""
    return SimpleNamespace(
        engine_id="engine",
        is_kv_producer=role in {"kv_producer", "kv_both"},
        is_kv_consumer=role in {"kv_consumer", "kv_both"},
        kv_connector_extra_config={"transfer_timeout_ms": 2000, "lease_ms": 2500, **extra},
        kv_load_failure_policy="recompute",
    )
