"""Results of a run, for the report and the JSON of --json."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from llm_datadist.cli.demo.messages import ALL_LAYERS, LostRange, Mode
from llm_datadist.cli.demo.model import ModelShape

SpanKind = Literal["compute", "transfer", "decode"]


class Span(msgspec.Struct, frozen=True):
    """One bar of the timeline, in ms since the requests were submitted.

    `layer` is None if it covers all layers, as a pull or a decode step does.
    """

    request: int
    kind: SpanKind
    layer: int | None
    start_ms: float
    end_ms: float

    @property
    def duration_ms(self) -> float:
        """Length of the bar."""
        return self.end_ms - self.start_ms


class RequestResult(msgspec.Struct, frozen=True, kw_only=True):
    """One request.

    `transfer_ms` is the total time of its transfers; `exposed_ms` is the part after its prefill,
    which computation did not hide. `time_to_first_token_ms` runs from the submission of all
    requests until the decode process has this request's cache and its first token.
    """

    name: str
    prompt_tokens: int
    kv_bytes: int
    blocks: int
    source_blocks: list[int]
    target_blocks: list[int]
    prefill_ms: float
    transfer_ms: float
    exposed_ms: float
    gb_per_s: float
    time_to_first_token_ms: float
    ms_per_token: float
    tokens: list[int]
    reference_tokens: list[int]
    tokens_equal: bool
    logits_equal: bool


class FaultResult(msgspec.Struct, frozen=True, kw_only=True):
    """A fault of --inject-fault and its repair.

    `lost` was injected; `named`, `text` and `status` are from the error of the pull, of which
    `arrived_blocks` arrived. `others_tokens` were decoded for other requests between the error and
    the continuation of the request.
    """

    request: str
    lost: list[LostRange]
    how: list[str]
    status: str
    text: str
    named: list[LostRange]
    arrived_blocks: int
    remap_ms: float
    recompute_ms: float
    recomputed_tokens: int
    pulled_blocks: int
    pull_ms: float
    recovery_ms: float
    others_tokens: int


class DemoResult(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a run."""

    version: str
    mode: Mode
    backend: str
    link: dict[str, Any]
    seed: int
    block_size: int
    model: ModelShape
    tokens_equal: bool
    logits_equal: bool
    residents_intact: bool
    start_up_ms: float
    serving_ms: float
    reference_ms: float
    requests: list[RequestResult]
    fault: FaultResult | None = None
    timeline: list[Span]


def span(request: int, kind: SpanKind, layer: int, start_ns: int, end_ns: int, zero: int) -> Span:
    """Return a Span from clock readings; `zero` is the clock at submission."""
    return Span(
        request,
        kind,
        None if layer == ALL_LAYERS else layer,
        (start_ns - zero) / 1e6,
        (end_ns - zero) / 1e6,
    )
