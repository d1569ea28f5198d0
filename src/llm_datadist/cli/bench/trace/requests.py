"""Requests of a trace: a file of JSON lines, as the public traces of Mooncake are."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Annotated

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Request", "read_requests"]

_NotNegative = Annotated[float, msgspec.Meta(ge=0)]
_Count = Annotated[int, msgspec.Meta(ge=0)]


class Request(msgspec.Struct, frozen=True):
    """A request.

    Attributes:
        timestamp: When it arrives, in ms since the start of the trace.
        input_length: Tokens of the prompt.
        output_length: Tokens that are generated.
        hash_ids: Of each block of tokens of the prompt; equal ids have equal tokens up to there.
    """

    timestamp: _NotNegative
    input_length: _Count
    output_length: _Count
    hash_ids: list[int]


_LINE = "a line is a JSON object with timestamp (ms), input_length, output_length and hash_ids"


def read_requests(path: Path, most: int | None = None) -> list[Request]:
    """Return the requests of a trace in order of time, `most` of them at most.

    Raises:
        ValueError: The file cannot be read or has no requests, or a line is none; with its number.
    """
    decoder = msgspec.json.Decoder(Request)
    requests = []
    try:
        lines = path.open("rb")
    except OSError as problem:
        raise ValueError(
            f"trace {path} cannot be read: {problem.strerror}; give a file in which {_LINE}"
        ) from None
    with lines:
        filled = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
        for number, line in islice(filled, most):
            try:
                requests.append(decoder.decode(line))
            except msgspec.MsgspecError as problem:
                raise ValueError(
                    f"trace {path}, line {number}: no request: {problem}; {_LINE}"
                ) from None
    if not requests:
        raise ValueError(f"trace {path} has no requests; give a file in which {_LINE}")
    return sorted(requests, key=lambda request: request.timestamp)
