"""What `after` of a transfer names: a stream or an event of the caller, by duck typing.

No package of a GPU is imported: torch, cupy and others are recognized by their attributes.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

from llm_datadist._types.checks import UINT64_MAX, check_int, wrong_type

__all__ = ["After", "StreamPoint", "check_after"]

After: TypeAlias = Any
"""torch.cuda.Stream, torch.cuda.Event, an object with `__cuda_stream__`, or the int handle of a
stream; None for none."""

_WANTED = (
    "a CUDA stream or event (torch.cuda.Stream, torch.cuda.Event, __cuda_stream__, int) or None"
)


class StreamPoint(NamedTuple):
    """A stream, for all work that it has been given so far, or an event.

    Attributes:
        kind: Which of the two.
        handle: Of the driver.
        device: Ordinal of its GPU; None if the caller has not named it.
        owner: The caller's object, which keeps the handle valid.
    """

    kind: Literal["stream", "event"]
    handle: int
    device: int | None
    owner: object


def check_after(after: After, name: str = "after") -> StreamPoint | None:
    """Return what the argument names; None for None.

    Raises:
        TypeError: It is neither a stream nor an event.
        ValueError: An event that was never recorded, or an int that is no handle.
    """
    if after is None:
        return None
    device = getattr(getattr(after, "device", None), "index", None)
    device = device if isinstance(device, int) else None
    if hasattr(type(after), "__cuda_stream__"):
        return StreamPoint("stream", _protocol_handle(name, after), device, after)
    for kind in ("stream", "event"):
        handle = getattr(after, f"cuda_{kind}", None)
        if isinstance(handle, int):
            if kind == "event" and handle == 0:
                raise ValueError(f"{name} is an event that was never recorded; record it before")
            return StreamPoint(kind, handle, device, after)
    if isinstance(after, int) and not isinstance(after, bool):
        return StreamPoint("stream", check_int(name, after, 0, UINT64_MAX), None, after)
    raise wrong_type(name, after, _WANTED)


def _protocol_handle(name: str, stream: After) -> int:
    """Return the handle by the protocol: `__cuda_stream__` is or returns (version 0, handle)."""
    found = stream.__cuda_stream__
    found = found() if callable(found) else found
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], int)):
        raise wrong_type(f"{name}.__cuda_stream__()", found, "a tuple of version and handle")
    if found[0] != 0:
        raise TypeError(f"{name}.__cuda_stream__() has version {found[0]}, only 0 is known")
    return found[1]
