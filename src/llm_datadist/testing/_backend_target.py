"""The passive end of a backend check: a peer that does what the check tells it."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from llm_datadist.testing._arena import NUM_TENSORS, PAGE_BYTES
from llm_datadist.testing._backend_end import (
    BackendEnd,
    Introduction,
    accept_lanes,
    listen,
)
from llm_datadist.testing._bodies import BodyName

if TYPE_CHECKING:
    import numpy.typing as npt

    from llm_datadist.testing.exits import Value
    from llm_datadist.testing.here import Here

INITIATOR_ID = 1
TARGET_ID = 2
STOP = "stop"
CLEAN_GAPS = np.zeros(NUM_TENSORS * PAGE_BYTES, dtype=np.uint8)


def digests(contents: npt.NDArray[np.uint8], gaps: npt.NDArray[np.uint8] = CLEAN_GAPS) -> list[str]:
    """Digests of registered memory and of the gaps in it: what the command `digest` answers."""
    return [hashlib.sha256(part.tobytes()).hexdigest() for part in (contents, gaps)]


class TargetCommands:
    """What the check may ask of the target; each method is a command."""

    def __init__(self, end: BackendEnd) -> None:
        self._end = end

    def fill(self, seed: int) -> None:
        """Write a pattern over the registered memory."""
        self._end.arena.fill(seed)

    def digest(self) -> list[str]:
        """Digests of the registered memory and of the gaps."""
        return digests(self._end.arena.contents(), self._end.arena.gaps())

    def protect(self, offset: int, accessible: bool) -> None:
        """Take a page of the first tensor away, or give it back."""
        self._end.arena.protect(offset, accessible=accessible)

    def close_entry(self) -> None:
        """Unregister the memory."""
        self._end.node.close_entry(*self._end.cache_ref)

    def reopen_entry(self) -> list[int]:
        """Remap the memory; the entry's new reference."""
        index, value = self._end.cache_ref
        self._end.cache_ref = (index, self._end.node.reopen_entry(index, value))
        return list(self._end.cache_ref)

    def close_key(self) -> None:
        """Kill the key."""
        self._end.node.close_key(*self._end.key_ref)

    def append_record(self) -> int:
        """Change the directory; its new version."""
        self._end.node.append(b"record")
        version: int = self._end.node.version()
        return version

    def drop_link(self) -> None:
        """End the link from this side."""
        self._end.close()

    def compute(self, seconds: float) -> None:
        """Keep the interpreter busy."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pass


def serve_backend(here: Here, module: str, file: str, qualname: str) -> None:
    """Body of the target."""
    end = BackendEnd(BodyName(module, file, qualname))
    with listen() as listener:
        here.send([listener.getsockname()[1], msgspec.to_builtins(end.introduction())])
        there = msgspec.convert(here.receive(), Introduction)
        client, served = accept_lanes(listener)
    end.connect(there, client, served, INITIATOR_ID)
    here.send("connected")
    commands = TargetCommands(end)
    while (command := _next(here))[0] != STOP:
        name, *arguments = command
        here.send(getattr(commands, name)(*arguments))
    end.close()


def _next(here: Here) -> list[Value]:
    command: list[Value] = here.receive(timeout_s=600.0)
    return command
