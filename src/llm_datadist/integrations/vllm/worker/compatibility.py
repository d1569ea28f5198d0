"""Compatibility check: facts in which producer and consumer must agree to share KV blocks.

Each worker publishes its facts as a page of memory, which a peer pulls after linking. So they are
those of the process whose blocks will be pulled, and come over the authenticated link.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_datadist.integrations.vllm.kv_layout import KVLayout
    from llm_datadist.integrations.vllm.rank_layouts import RankLayouts
    from llm_datadist.layouts import KvLayout

FACTS_BYTES = 8192
FACTS_MODEL_ID = 0
"""BlocksCacheKey.model_id of the page; keys of requests are greater."""

_FORMAT = "2"
_TP_SIZE = "tensor parallel size"
_TP_RANK = "tensor parallel rank"
_BLOCK_SIZE = "block size"
_KV_LAYOUT = "KV layout"


@dataclass(frozen=True, slots=True)
class Expected:
    """Facts that a producer must have.

    Attributes:
        facts: Name -> value.
        by: Who says so, for texts.
    """

    facts: dict[str, str]
    by: str = "consumer"


def facts_of(
    vllm_config: Any,
    layout: KVLayout,
    rank_layouts: RankLayouts,
    model_id: str | None,
    version: str,
) -> dict[str, str]:
    """Return the facts of one worker.

    Args:
        vllm_config: vLLM's configuration.
        layout: The worker's KV tensors.
        rank_layouts: What of them belongs to which token and head.
        model_id: Name of the model; None = vLLM's.
        version: vLLM's version.
    """
    model, cache = vllm_config.model_config, vllm_config.cache_config
    parallel = vllm_config.parallel_config
    layers = [name for part in layout.parts for name in part.layers]
    return {
        "connector format": _FORMAT,
        "vLLM version": version,
        "model": model_id or str(model.model),
        "model revision": str(model.revision),
        "architectures": ", ".join(getattr(model.hf_config, "architectures", None) or ()),
        "model configuration": f"digest {_config_digest(model.hf_config)}",
        "dtype": str(model.dtype),
        "quantization": str(model.quantization),
        "KV cache dtype": str(cache.cache_dtype),
        "attention backends": rank_layouts.backends,
        _BLOCK_SIZE: _listed(layout.block_sizes),
        "KV cache groups": layout.groups,
        "layers": f"{len(layers)}, digest {_digest(chr(10).join(layers))}",
        _KV_LAYOUT: layout.describe(),
        "KV heads": rank_layouts.describe(),
        _TP_SIZE: str(parallel.tensor_parallel_size),
        _TP_RANK: str(layout.rank),
    }


def facts_of_rank(
    facts: dict[str, str],
    layout: KVLayout,
    parts: Sequence[KvLayout],
    tp_size: int,
    rank: int,
    block_sizes: Sequence[int],
) -> dict[str, str]:
    """Return the facts of the worker of an unequal engine with which this one can transfer.

    Args:
        facts: This worker's.
        layout: This worker's KV tensors.
        parts: The other worker's layouts.
        tp_size: Tensor-parallel ranks of the other engine.
        rank: The other worker's.
        block_sizes: Tokens of a block of the other engine, by KV cache group.
    """
    return {
        **facts,
        _BLOCK_SIZE: _listed(block_sizes),
        _KV_LAYOUT: layout.describe([part.strides.block for part in parts]),
        _TP_SIZE: str(tp_size),
        _TP_RANK: str(rank),
    }


def tp_size_of(facts: dict[str, str]) -> int:
    """Return the tensor-parallel size of the engine whose facts these are.

    Raises:
        ValueError: They do not say.
    """
    return int(facts.get(_TP_SIZE, ""))


def mismatches(expected: Expected, remote: dict[str, str]) -> list[str]:
    """Return the differing facts with both values, given the expected and the producer's."""
    wanted = expected.facts
    return [
        f"{name}: producer {remote.get(name, 'unknown')!r}, {expected.by} "
        f"{wanted.get(name, 'unknown')!r}"
        for name in dict.fromkeys([*wanted, *remote])
        if wanted.get(name) != remote.get(name)
    ]


def write_facts(facts: dict[str, str]) -> bytes:
    """Encode facts as a page.

    Raises:
        ValueError: They do not fit.
    """
    text = msgspec.json.encode(facts)
    if len(text) > FACTS_BYTES:
        raise ValueError(f"the facts of the compatibility check have {len(text)} bytes")
    return text.ljust(FACTS_BYTES, b" ")


def read_facts(page: bytes) -> dict[str, str]:
    """Decode the facts of a page.

    Raises:
        ValueError: The page holds none.
    """
    try:
        return msgspec.json.decode(page, type=dict[str, str])
    except msgspec.DecodeError as error:
        raise ValueError(f"the peer's facts cannot be read: {error}") from None


def _config_digest(hf_config: Any) -> str:
    """Digest the model's configuration without the fields that name its source."""
    fields = {
        name: value
        for name, value in hf_config.to_dict().items()
        if name not in {"_name_or_path", "transformers_version"}
    }
    return _digest(json.dumps(fields, sort_keys=True, default=lambda value: type(value).__name__))


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
