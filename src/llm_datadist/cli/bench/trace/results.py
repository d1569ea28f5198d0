"""What a replay measured, as `--json` writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from llm_datadist.cli.bench.results import Machine
from llm_datadist.cli.bench.timing import percentile

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SCHEMA", "Percentiles", "TraceRun", "percentiles"]

SCHEMA = 1


class Percentiles(msgspec.Struct):
    """Milliseconds."""

    p50: float
    p90: float
    p99: float
    max: float


class TraceRun(msgspec.Struct, kw_only=True):
    """One replay of `llm-datadist bench trace`.

    Attributes:
        schema: Version of this format.
        version: Of llm-datadist.
        started: Time of the start in UTC, ISO 8601.
        machine: Where it ran.
        trace: Name of the file.
        preset, tp, layers: The model, and how many of its layers move.
        path: Data path.
        speed: How much faster than the trace.
        parallel: Requests at once.
        block_tokens: Tokens of a block of the trace.
        block_bytes: Bytes of such a block in all tensors.
        cache_blocks: Capacity of the decode process's cache, in such blocks.
        requests: Number of requests.
        seconds: From the first arrival to the last block.
        blocks: Blocks of all requests.
        hits: How many of them were there, or on their way, when the request came.
        hit_ratio: hits / blocks.
        total_bytes: That were pulled.
        gbps: Rate of the pulls, GB/s, while at least one was under way.
        latency_ms: From the arrival of a request to its last block.
        pull_ms: Of the pulls of requests that missed blocks; null without any.
        late_ms: A request is late if its latency is longer.
        late_ratio: Share of late requests.
    """

    schema: int = SCHEMA
    version: str
    started: str
    machine: Machine
    trace: str
    preset: str
    tp: int
    layers: int
    path: str
    speed: float
    parallel: int
    block_tokens: int
    block_bytes: int
    cache_blocks: int
    requests: int
    seconds: float
    blocks: int
    hits: int
    hit_ratio: float
    total_bytes: int
    gbps: float
    latency_ms: Percentiles
    pull_ms: Percentiles | None
    late_ms: float
    late_ratio: float


def percentiles(values_ms: Iterable[float]) -> Percentiles | None:
    """Return percentiles of milliseconds, None without any."""
    ordered = sorted(values_ms)
    if not ordered:
        return None
    ranks = (percentile(ordered, percent) for percent in (50, 90, 99, 100))
    return Percentiles(*(round(value, 3) for value in ranks))
