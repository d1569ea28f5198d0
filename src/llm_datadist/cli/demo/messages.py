"""Messages between the demo's router and its workers.

Times are CLOCK_MONOTONIC nanoseconds, which all processes of a machine share.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from llm_datadist.cli.demo.model import ModelShape

Role = Literal["prefill", "decode", "reference"]
Mode = Literal["pull", "layerwise"]

PREFILL_CLUSTER = 1
DECODE_CLUSTER = 2
ALL_LAYERS = -1


class _Message(msgspec.Struct, frozen=True, tag=True):
    pass


class LayerSpan(msgspec.Struct, frozen=True):
    """Start and end of the work on one layer, or on all (ALL_LAYERS)."""

    layer: int
    start_ns: int
    end_ns: int


# ---- to a worker ---------------------------------------------------------------------------------


class Setup(_Message, frozen=True):
    """First message to every worker: its role and sizes.

    `num_blocks` is the size of its KV cache; the first `resident_blocks` of them belong to other
    requests and must never change. `slots` is the number of rows of a decode step. `fault_in` is
    the request of which prefill must lose memory.
    """

    role: Role
    shape: ModelShape
    seed: int
    mode: Mode
    backend: str
    block_size: int
    num_blocks: int
    resident_blocks: int
    slots: int
    max_new_tokens: int
    corrupt_block: bool = False
    fault_in: int | None = None


class LinkTo(_Message, frozen=True):
    """To decode: link to the prefill process at this address."""

    ip: str
    port: int


class Reserve(_Message, frozen=True):
    """To decode: reserve blocks for a request."""

    request: int
    prompt_tokens: int


class Submit(_Message, frozen=True):
    """To prefill and reference: compute this prompt; in layerwise mode push it to these blocks."""

    request: int
    prompt: list[int]
    target_blocks: list[int] = []


class StartDecode(_Message, frozen=True):
    """To decode: the request is prefilled; in pull mode, pull it from source_blocks."""

    request: int
    first_token: int
    source_blocks: list[int]


class LostRange(msgspec.Struct, frozen=True):
    """Memory of the prefill process at fault."""

    tensor: int
    block: int
    addr: int
    size: int


class Repair(_Message, frozen=True):
    """To prefill: repair these ranges, and recompute the blocks in them."""

    request: int
    lost: list[LostRange]


class Resume(_Message, frozen=True):
    """To decode: the lost blocks of the request are repaired; pull them, and continue."""

    request: int


class Release(_Message, frozen=True):
    """To prefill: the request has been transferred, its blocks are free."""

    request: int


class Stop(_Message, frozen=True):
    """Close everything, send Stopped, and exit."""


# ---- from a worker -------------------------------------------------------------------------------


class Ready(_Message, frozen=True):
    """The worker is initialized; prefill listens on this address."""

    ip: str = ""
    port: int = 0


class Linked(_Message, frozen=True):
    """The link is made; `description` is the result of describe_link."""

    backend: str
    description: dict[str, Any]


class Reserved(_Message, frozen=True):
    """These blocks of the decode process are reserved to receive the prompt."""

    request: int
    blocks: list[int]


class LayerDone(_Message, frozen=True):
    """Prefill has computed one layer of a request."""

    request: int
    span: LayerSpan


class Prefilled(_Message, frozen=True):
    """A prompt is computed and its first token chosen."""

    request: int
    first_token: int
    source_blocks: list[int]


class FaultInjected(_Message, frozen=True):
    """Prefill has made memory of a request inaccessible."""

    request: int
    lost: list[LostRange]
    how: list[str]


class FaultDetected(_Message, frozen=True):
    """The pull of a request has failed because of memory of the prefill process."""

    request: int
    status: str
    text: str
    lost: list[LostRange]
    at_ns: int


class Repaired(_Message, frozen=True):
    """New pages are mapped and the lost blocks are recomputed."""

    request: int
    remap_ms: float
    recompute_ms: float
    tokens: int


class Resumed(_Message, frozen=True):
    """The second pull of a request has succeeded."""

    request: int
    blocks: int
    pull_ms: float
    at_ns: int


class Moved(_Message, frozen=True):
    """A request's prompt blocks have arrived in the decode process."""

    request: int
    num_bytes: int
    source_blocks: list[int]
    target_blocks: list[int]
    spans: list[LayerSpan]


class Token(_Message, frozen=True):
    """The decode or reference process has decoded a token of a request."""

    request: int
    token: int
    at_ns: int


class Finished(_Message, frozen=True):
    """All tokens of a request are decoded; the digest covers every decoded logit."""

    request: int
    tokens: list[int]
    digest: str


class Note(_Message, frozen=True):
    """Text for --verbose."""

    text: str


class Failed(_Message, frozen=True):
    """The worker has failed; `detail` is a traceback for errors without a text for the user."""

    problem: str
    detail: str


class Stopped(_Message, frozen=True):
    """Last message: everything is closed. False if a resident block has changed."""

    residents_intact: bool = True


ToWorker = Setup | LinkTo | Reserve | Submit | StartDecode | Repair | Resume | Release | Stop
FromWorker = (
    Ready
    | Linked
    | Reserved
    | LayerDone
    | Prefilled
    | FaultInjected
    | FaultDetected
    | Repaired
    | Resumed
    | Moved
    | Token
    | Finished
    | Note
    | Failed
    | Stopped
)
Message = ToWorker | FromWorker
