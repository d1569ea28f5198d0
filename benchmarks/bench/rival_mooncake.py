"""Mooncake's transfer engine over TCP, peer to peer, as its users drive it from Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bench import hosts, work
from bench.contender import Contender, serve

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


def _engine(memory: np.ndarray, end: int) -> Any:
    from mooncake.engine import TransferEngine  # noqa: PLC0415

    engine = TransferEngine()
    if engine.initialize(hosts.address(end), "P2PHANDSHAKE", "tcp", "") != 0:
        raise RuntimeError("Mooncake cannot start")
    if engine.register_memory(work.address(memory), len(memory)) != 0:
        raise RuntimeError("Mooncake cannot register the buffer")
    return engine


def owner(pipe: Connection, memory: np.ndarray) -> None:
    """Body of the owner process."""
    engine = _engine(memory, hosts.OWNER)
    port = engine.get_rpc_port()
    pipe.send({"session": f"{hosts.address(hosts.OWNER)}:{port}", "address": work.address(memory)})
    serve(pipe, memory)


class Mooncake(Contender):
    """Batches of blocks in one synchronous call."""

    name = "Mooncake (tcp)"

    def __init__(self, local: np.ndarray) -> None:
        super().__init__(local)
        self._engine = _engine(local, hosts.LOCAL)
        self._blocks: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @staticmethod
    def owner_body() -> Any:
        return owner

    def prepare(self, case: work.Case) -> None:
        self._blocks[case.name] = case.blocks()

    def _lists(self, case: work.Case, local_blocks: np.ndarray, remote_blocks: np.ndarray) -> Any:
        size = np.uint64(case.block_bytes)
        local = local_blocks.astype(np.uint64) * size + np.uint64(work.address(self.local))
        remote = remote_blocks.astype(np.uint64) * size + np.uint64(self.owner.hello["address"])
        return local.tolist(), remote.tolist(), [case.block_bytes] * case.count

    def read(self, case: work.Case) -> None:
        src, dst = self._blocks[case.name]
        session = self.owner.hello["session"]
        if self._engine.batch_transfer_sync_read(session, *self._lists(case, dst, src)) != 0:
            raise RuntimeError("Mooncake: the read failed")

    def write(self, case: work.Case) -> None:
        src, dst = self._blocks[case.name]
        session = self.owner.hello["session"]
        if self._engine.batch_transfer_sync_write(session, *self._lists(case, src, dst)) != 0:
            raise RuntimeError("Mooncake: the write failed")
