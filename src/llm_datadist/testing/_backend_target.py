"""Target of a backend check: a peer that executes the check's commands."""

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
    from llm_datadist.testing.member import Member

INITIATOR_ID = 1
TARGET_ID = 2
STOP = "stop"
CLEAN_GAPS = np.zeros(NUM_TENSORS * PAGE_BYTES, dtype=np.uint8)


def digests(contents: npt.NDArray[np.uint8], gaps: npt.NDArray[np.uint8] = CLEAN_GAPS) -> list[str]:
    """Return digests of registered memory and of its gaps, as the command `digest` does."""
    return [hashlib.sha256(part.tobytes()).hexdigest() for part in (contents, gaps)]


class TargetCommands:
    """Commands to the target, one per method."""

    def __init__(self, end: BackendEnd) -> None:
        self._end = end

    def fill(self, seed: int) -> None:
        """Write a pattern over the registered memory."""
        self._end.arena.fill(seed)

    def digest(self) -> list[str]:
        """Return digests of the registered memory and of the gaps."""
        return digests(self._end.arena.contents(), self._end.arena.gaps())

    def protect(self, offset: int, accessible: bool) -> None:
        """Forbid access to a page of the first tensor, or allow it again."""
        self._end.arena.protect(offset, accessible=accessible)

    def close_entry(self) -> None:
        """Unregister the memory."""
        self._end.node.close_entry(*self._end.cache_ref)

    def reopen_entry(self) -> list[int]:
        """Remap the memory; return the entry's new reference."""
        index, value = self._end.cache_ref
        self._end.cache_ref = (index, self._end.node.reopen_entry(index, value))
        return list(self._end.cache_ref)

    def close_key(self) -> None:
        """Close the key."""
        self._end.node.close_key(*self._end.key_ref)

    def append_record(self) -> int:
        """Change the directory; return its new version."""
        self._end.node.append(b"record")
        version: int = self._end.node.version()
        return version

    def drop_link(self) -> None:
        """End the link from the target's side."""
        self._end.close()

    def compute(self, seconds: float) -> None:
        """Keep the interpreter busy."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pass


def serve_backend(member: Member, module: str, file: str, qualname: str) -> None:
    """Run the target; body of a peer."""
    end = BackendEnd(BodyName(module, file, qualname))
    with listen() as listener:
        member.send([listener.getsockname()[1], msgspec.to_builtins(end.introduction())])
        initiator = msgspec.convert(member.receive(), Introduction)
        client, served = accept_lanes(listener)
    end.connect(initiator, client, served, INITIATOR_ID)
    member.send("connected")
    commands = TargetCommands(end)
    while (command := _next(member))[0] != STOP:
        name, *arguments = command
        member.send(getattr(commands, name)(*arguments))
    end.close()


def _next(member: Member) -> list[Value]:
    command: list[Value] = member.receive(timeout_s=600.0)
    return command
