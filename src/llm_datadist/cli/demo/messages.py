"""What the demo's processes say to each other, through the parent, which plays the router.

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
    """When one layer (or ALL_LAYERS) of something was under way."""

    layer: int
    start_ns: int
    end_ns: int


# ---- to a worker ---------------------------------------------------------------------------------


class Setup(_Message, frozen=True):
    """First message to every worker: what to be.

    `num_blocks` is the size of its KV cache; the first `resident_blocks` of them belong to others
    and must never change. `slots` is the number of rows of a decode step. `fault_in` is the request
    under which prefill is to lose memory.
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
    """To decode: link to the prefill process, which listens here."""

    ip: str
    port: int


class Reserve(_Message, frozen=True):
    """To decode: set blocks aside for a request."""

    request: int
    prompt_tokens: int


class Submit(_Message, frozen=True):
    """To prefill and reference: work on this prompt; in layerwise mode push it to these blocks."""

    request: int
    prompt: list[int]
    target_blocks: list[int] = []


class Begin(_Message, frozen=True):
    """To decode: the request is prefilled. Pull it from source_blocks, or it is there already."""

    request: int
    first_token: int
    source_blocks: list[int]


class LostRange(msgspec.Struct, frozen=True):
    """Memory of the prefill process that a transfer found to be at fault."""

    tensor: int
    block: int
    addr: int
    size: int


class Repair(_Message, frozen=True):
    """To prefill: mend these ranges, and compute the blocks anew that lie there."""

    request: int
    lost: list[LostRange]


class Resume(_Message, frozen=True):
    """To decode: what was lost of the request is there again; pull it, and go on."""

    request: int


class Release(_Message, frozen=True):
    """To prefill: the request has been moved, its blocks are free."""

    request: int


class Stop(_Message, frozen=True):
    """Close everything, say Stopped, and exit."""


# ---- from a worker -------------------------------------------------------------------------------


class Ready(_Message, frozen=True):
    """The weights are made and the cache is registered; prefill listens at this address."""

    ip: str = ""
    port: int = 0


class Linked(_Message, frozen=True):
    """The link is up; `description` is what describe_link says."""

    backend: str
    description: dict[str, Any]


class Reserved(_Message, frozen=True):
    """These blocks of the decode process are set aside; the first ones receive the prompt."""

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
    """Prefill has lost memory under a request."""

    request: int
    lost: list[LostRange]
    how: list[str]


class FaultMet(_Message, frozen=True):
    """The pull of a request has failed on memory of the prefill process."""

    request: int
    status: str
    text: str
    lost: list[LostRange]
    at_ns: int


class Repaired(_Message, frozen=True):
    """New pages are mapped and the lost blocks are computed anew."""

    request: int
    remap_ms: float
    recompute_ms: float
    tokens: int


class Resumed(_Message, frozen=True):
    """The pull of a request has succeeded after all."""

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
    """The decode (or reference) process hands out the next token of a request."""

    request: int
    token: int
    at_ns: int


class Finished(_Message, frozen=True):
    """A request has all its tokens; the digest covers every logit that decoding computed."""

    request: int
    tokens: list[int]
    digest: str


class Note(_Message, frozen=True):
    """Something that --verbose shows."""

    text: str


class Failed(_Message, frozen=True):
    """The worker gives up; `detail` is a traceback where the problem does not explain itself."""

    problem: str
    detail: str


class Stopped(_Message, frozen=True):
    """Last message: everything is closed. False when a resident block changed."""

    residents_intact: bool = True


ToWorker = Setup | LinkTo | Reserve | Submit | Begin | Repair | Resume | Release | Stop
FromWorker = (
    Ready
    | Linked
    | Reserved
    | LayerDone
    | Prefilled
    | FaultInjected
    | FaultMet
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
