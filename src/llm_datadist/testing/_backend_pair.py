"""Initiator of a backend check, connected to its target."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from llm_datadist._backends.transfer import Transfer
from llm_datadist._plan import Plan
from llm_datadist._types.refs import NO_REF
from llm_datadist.testing._arena import NUM_TENSORS, TENSOR_BYTES
from llm_datadist.testing._backend_end import BackendEnd, Introduction, dial_lanes
from llm_datadist.testing._backend_target import STOP, TARGET_ID, serve_backend
from llm_datadist.testing.peer_group import Peer, PeerGroup

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Literal

    from llm_datadist._backends.outcomes import Outcome
    from llm_datadist._types.refs import Ref
    from llm_datadist.testing._bodies import BodyName
    from llm_datadist.testing.exits import Value

DEADLINE_S = 10.0


class BackendPair:
    """Two connected ends: this process initiates transfers, the target executes commands.

    Attributes:
        local: The initiator's end, in this process.
        remote: The target's introduction.
        peer: The target's process or thread.
    """

    def __init__(self, group: PeerGroup, maker: BodyName) -> None:
        self.group = group
        self.peer: Peer = group.start(serve_backend, *maker, name="target")
        self.local = BackendEnd(maker)
        port, introduction = self.peer.receive()
        self.remote = msgspec.convert(introduction, Introduction)
        self.peer.send(msgspec.to_builtins(self.local.introduction()))
        client, served = dial_lanes(port)
        self.local.connect(self.remote, client, served, TARGET_ID)
        assert self.peer.receive() == "connected"

    def ask(self, command: str, *arguments: Value) -> Value:
        """Have the target execute a command of `TargetCommands`; return its answer."""
        self.peer.send([command, *arguments])
        return self.peer.receive()

    def transfer(
        self,
        pieces: Sequence[tuple[int, int, int]],
        *,
        write: bool = False,
        timeout_s: float = DEADLINE_S,
        cache_ref: Ref | None = None,
        local_ref: Ref | None = None,
        key_ref: Ref = NO_REF,
        version: int = 0,
    ) -> Transfer:
        """Make a transfer of (local offset, remote offset, length) pieces.

        Offsets count through the tensors without the gaps; one beyond the end is an address that
        far behind the last tensor.
        """
        addresses = [int(address) for address in self.local.arena.addresses]
        columns = [
            [address_at(addresses, piece[0]) for piece in pieces],
            [address_at(self.remote.addresses, piece[1]) for piece in pieces],
            [piece[2] for piece in pieces],
        ]
        local, remote, length = (np.array(column, dtype=np.uint64) for column in columns)
        return Transfer(
            write=write,
            plan=Plan.of(local, remote, length),
            local_ref=self.local.cache_ref if local_ref is None else local_ref,
            cache_ref=self.remote.cache_ref if cache_ref is None else cache_ref,
            key_ref=key_ref,
            version=version,
            deadline_ns=time.monotonic_ns() + int(timeout_s * 1e9),
        )

    def run(self, transfer: Transfer) -> Outcome:
        """Execute a transfer through a handle, as the contract requires."""
        handle = self.local.channel.post(transfer)
        try:
            return handle.wait()
        finally:
            handle.release()

    def close(self) -> None:
        """Close both ends; the target may be gone already."""
        if self.peer.exit is None:
            self.peer.send([STOP])
        self.local.close()


def address_at(addresses: Sequence[int], offset: int) -> int:
    """Return the address of a byte offset through tensors at these addresses."""
    tensor = min(offset // TENSOR_BYTES, NUM_TENSORS - 1)
    return addresses[tensor] + offset - tensor * TENSOR_BYTES


@contextmanager
def backend_pair(maker: BodyName, kind: Literal["process", "thread"]) -> Iterator[BackendPair]:
    """Make a pair, and close it at the end."""
    with PeerGroup(kind) as group:
        pair = BackendPair(group, maker)
        try:
            yield pair
        finally:
            pair.close()
