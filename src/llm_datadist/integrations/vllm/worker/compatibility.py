"""Compatibility check: facts in which producer and consumer must agree to share KV blocks.

Each worker publishes its facts as a page of memory, which a peer pulls after linking. So they are
those of the process whose blocks will be pulled, and come over the authenticated link.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from llm_datadist.integrations.vllm.stages import name_pattern, span_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_datadist.integrations.vllm.kv_layout import KVLayout
    from llm_datadist.integrations.vllm.rank_layouts import RankLayouts
    from llm_datadist.integrations.vllm.stages import EngineShape
    from llm_datadist.layouts import KvLayout

FACTS_BYTES = 8192
FACTS_MODEL_ID = 0
"""BlocksCacheKey.model_id of the page; keys of requests are greater."""

_FORMAT = "4"
_TP_SIZE = "tensor parallel size"
_TP_RANK = "tensor parallel rank"
_PP_SIZE = "pipeline parallel size"
_PP_RANK = "pipeline parallel rank"
_LAYERS = "layers"
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


@dataclass(frozen=True, slots=True)
class Share:
    """What part of the model a worker holds.

    Attributes:
        tp_size: Tensor-parallel ranks of its engine.
        tp_rank: Its own.
        layers: Its layers; None if they are not known.
    """

    tp_size: int
    tp_rank: int
    layers: range | None


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
    stage = rank_layouts.stage
    names = [name for part in layout.parts for name in part.layers]
    if stage.layers is not None:  # the names of other layers are then known too
        names = sorted(set(map(name_pattern, names)))
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
        "layer names": f"digest {_digest(chr(10).join(names))}",
        _LAYERS: str(len(names)) if stage.layers is None else span_text(stage.layers),
        _KV_LAYOUT: layout.describe(),
        "KV heads": rank_layouts.describe(),
        _TP_SIZE: str(rank_layouts.tp_size),
        _TP_RANK: str(rank_layouts.rank),
        _PP_SIZE: str(stage.count),
        _PP_RANK: str(stage.rank),
    }


def facts_of_rank(
    facts: dict[str, str],
    layout: KVLayout,
    parts: Sequence[KvLayout],
    shape: EngineShape,
    index: int,
    block_sizes: Sequence[int],
) -> dict[str, str]:
    """Return the facts of the worker of an unequal engine with which this one can transfer.

    Args:
        facts: This worker's.
        layout: This worker's KV tensors.
        parts: The other worker's layouts.
        shape: Of the other engine.
        index: The other worker's among those of its engine.
        block_sizes: Tokens of a block of the other engine, by KV cache group.
    """
    pp_rank, tp_rank = divmod(index, shape.tp_size)
    layers = shape.stages[pp_rank]
    return {
        **facts,
        _BLOCK_SIZE: _listed(block_sizes),
        **({} if layers is None else {_LAYERS: span_text(layers)}),
        _KV_LAYOUT: layout.describe([(part.num_tensors, part.strides.block) for part in parts]),
        _TP_SIZE: str(shape.tp_size),
        _TP_RANK: str(tp_rank),
        _PP_SIZE: str(len(shape.stages)),
        _PP_RANK: str(pp_rank),
    }


def share_of(facts: dict[str, str]) -> Share:
    """Return what the worker whose facts these are holds.

    Raises:
        ValueError: They do not say.
    """
    span = re.fullmatch(r"(\d{1,9}) to (\d{1,9})", facts.get(_LAYERS, ""))
    layers = None if span is None else range(int(span[1]), int(span[2]) + 1)
    return Share(int(facts.get(_TP_SIZE, "")), int(facts.get(_TP_RANK, "")), layers)


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
    except ValueError as error:  # no JSON, no UTF-8, no texts
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
